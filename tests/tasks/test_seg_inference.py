"""Whole images, windows and scales against loops written from their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.segmentation.inference import Inference, windows


def starts(size, crop, stride):
    """The grid rule, counted up by hand: one window, then steps until the end is covered."""
    found = [0]
    while found[-1] + crop < size:
        found.append(min(found[-1] + stride, size - crop))
    return found


@pytest.mark.parametrize("size", [1, 5, 8, 9, 13, 16, 17, 33])
@pytest.mark.parametrize(("crop", "stride"), [(8, 8), (8, 5), (8, 1)])
def test_windows_cover_the_image_and_stay_inside(size, crop, stride):
    rows = sorted({top for top, _ in windows((size, 1), (crop, crop), (stride, stride))})
    assert rows == starts(size, crop, stride)


def test_the_published_grid():
    """1024 × 2048 with windows of 769 and stride 513: 2 × 4 of them."""
    found = windows((1024, 2048), (769, 769), (513, 513))
    assert found == [(top, left) for top in (0, 255) for left in (0, 513, 1026, 1279)]


@pytest.fixture
def network():
    """A network whose result depends on the whole of its input, as instance statistics make it."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


def pictures(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


def test_one_view_gives_the_logits_of_the_network(network):
    (image,) = pictures((20, 30))
    assert torch.equal(Inference().logits(network, image[None]), network(image[None]))


@pytest.mark.parametrize("size", [(20, 30), (16, 7), (5, 6)])
def test_windows_are_averaged(network, size):
    (image,) = pictures(size)
    total, count = np.zeros((4, *size)), np.zeros(size)
    height, width = min(16, size[0]), min(12, size[1])
    for top in starts(size[0], 16, 9):
        for left in starts(size[1], 12, 7):
            box = np.s_[top : top + height, left : left + width]
            total[:, *box] += network(image[None, :, *box])[0].numpy()
            count[box] += 1
    slide = Inference("slide", (16, 12), (9, 7), window_batch=3)
    # The sums are float32.
    np.testing.assert_allclose(slide.logits(network, image[None])[0], total / count, rtol=1e-5, atol=1e-6)


def test_probabilities_of_scales_and_mirrors_are_averaged(network):
    (image,) = pictures((20, 30))
    expected = torch.zeros(1, 4, 20, 30, dtype=torch.float64)
    for size in ((10, 15), (20, 30), (35, 52)):
        for flip in (False, True):
            seen = image[None].flip(-1) if flip else image[None]
            if size != (20, 30):
                seen = F.interpolate(seen, size, mode="bilinear", antialias=size[0] < 20)
            logits = F.interpolate(network(seen), (20, 30), mode="bilinear")
            expected += (logits.flip(-1) if flip else logits).softmax(1) / 6
    found = Inference(scales=(0.5, 1.0, 1.75), flip=True).logits(network, image[None])
    # Probabilities are float32.
    torch.testing.assert_close(found.exp().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.softmax(1), found.exp(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "inference",
    [
        Inference(),
        Inference("slide", (16, 16), (9, 9), window_batch=5),
        Inference(scales=(0.5, 1.25), flip=True),
        Inference("slide", (16, 16), (9, 9), scales=(1.0, 1.5), accumulate_on_cpu=True),
    ],
)
def test_results_do_not_depend_on_the_batch(network, inference):
    images = pictures((20, 30), (20, 30), (17, 23), (20, 30), (8, 8))
    together = list(inference(network, images))
    alone = [next(inference(network, [image])) for image in images]
    assert [t.shape[1:] for t in together] == [i.shape[1:] for i in images]
    for one, other in zip(together, alone, strict=True):
        # Convolutions of another batch may add in another order.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_no_more_windows_than_asked_for_are_in_the_network(network):
    seen = []

    def watched(images):
        seen.append(tuple(images.shape))
        return network(images)

    images = torch.stack(pictures((40, 40), (40, 40)))
    Inference("slide", (16, 16), (12, 12), window_batch=4).logits(watched, images)
    assert max(shape[0] for shape in seen) == 4 and {shape[2:] for shape in seen} == {(16, 16)}
    assert sum(shape[0] for shape in seen) == 2 * 9


def test_windows_are_those_of_one_image_at_a_time(network):
    """The sum over the windows of an image, at the size of the largest scale, is held once."""
    held = []

    class Watched(Inference):
        def logits(self, network, images):
            held.append(len(images))
            return super().logits(network, images)

    images = pictures((20, 24), (20, 24), (20, 24))
    slides = [*Watched("slide", (16, 16), (12, 12))(network, images)]
    assert held == [1, 1, 1]
    held.clear()
    assert len(slides) == len([*Watched()(network, images)]) == 3
    assert held == [3]


def test_no_images_give_nothing(network):
    assert list(Inference()(network, [])) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 8)}, "crop_size: expected positive numbers"),
        ({"stride": (8, 0)}, "stride: expected positive numbers"),
        ({"crop_size": (8, 8), "stride": (9, 8)}, "stride: expected steps within the window"),
        ({"scales": ()}, "scales: expected positive numbers"),
        ({"scales": (1.0, 0.0)}, "scales: expected positive numbers"),
        ({"window_batch": 0}, "window_batch: expected a positive number"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Inference(**options)
