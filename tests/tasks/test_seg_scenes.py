"""The embedded scenes: the same every time, disjoint digits, varied pictures."""

import numpy as np
import pytest
import torch

from tasks.segmentation.labels import IGNORE
from tasks.segmentation.scenes import DigitScenesDataModule, compose, split_digits


@pytest.fixture(scope="module")
def data():
    data = DigitScenesDataModule(scenes=60, batch_size=4)
    data.setup("fit")
    data.setup("test")
    return data


def test_sizes_and_classes(data):
    assert data.num_classes == 11 and data.class_name(0) == "background" and data.class_name(10) == "9"
    image, mask = data.examples("test")[0]
    assert image.shape == (3, 48, 48) and image.dtype == torch.uint8
    assert mask.shape == (48, 48) and mask.dtype == torch.uint8
    assert [len(data.examples(split)) for split in ("train", "val", "test", "predict")] == [60, 150, 200, 200]


def test_every_class_is_in_every_split(data):
    for split in ("train", "val", "test"):
        masks = torch.stack([mask for _, mask in data.composed[split]])
        assert masks.unique().tolist() == [*range(11), IGNORE]
        # Edges and digits are a part of the picture, not most of it.
        assert 0.03 < (masks == IGNORE).float().mean() < 0.2
        assert 0.6 < (masks == 0).float().mean() < 0.9


def test_two_to_four_digits(data):
    found = [len(set(mask.unique().tolist()) - {0, IGNORE}) for _, mask in data.composed["train"]]
    assert max(found) == 4 and min(found) >= 1  # two of the same digit are one class


def test_scenes_do_not_depend_on_the_seed_or_the_number_of_scenes(data):
    other = DigitScenesDataModule(scenes=5, seed=7)
    other.setup("fit")
    for split in ("train", "val"):
        for (image, mask), (image_2, mask_2) in zip(
            other.composed[split], data.composed[split], strict=False
        ):
            assert torch.equal(image, image_2) and torch.equal(mask, mask_2)


def test_splits_show_different_digits():
    """Every 8×8 digit of the table is in one split alone, but for two pictures that the table has twice."""
    seen = {
        split: {ink.numpy().tobytes() for ink in split_digits(split)[0]} for split in ("train", "val", "test")
    }
    counts = [len(split_digits(split)[0]) for split in seen]
    assert sum(counts) == 1797
    assert (
        not seen["train"] & seen["test"]
        and not seen["train"] & seen["val"]
        and not seen["val"] & seen["test"]
    )


def test_augmentation_depends_on_seed_epoch_and_index(data):
    def batch(seed, epoch):
        module = DigitScenesDataModule(scenes=60, seed=seed)
        module.composed = data.composed
        loader = module.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))

    first, again = batch(0, 0), batch(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for images, _, indices in (batch(1, 0), batch(0, 1)):
        assert not torch.equal(images, first[0]) or not torch.equal(indices, first[2])


def test_masks_lie_on_their_digits():
    """On a canvas of one digit, ink differs from paper where the mask says so."""
    images, digits = split_digits("train")
    contrasts = []
    for number in range(20):
        image, mask = compose(np.random.default_rng(number), images, digits, 1, 1)
        grey = image.float().mean(0)
        assert set(mask.unique().tolist()) - {0, IGNORE}
        contrasts.append((grey[(mask > 0) & (mask < IGNORE)].mean() - grey[mask == 0].mean()).abs().item())
    # Colours are 0.4 · 255 = 102 apart at least; texture, blur and the digits' own colours take some of it.
    assert min(contrasts) > 50
    assert max(contrasts) > 130  # and they differ from scene to scene


def test_evaluation_batches_are_normalised(data):
    images, _, indices = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer([images, [torch.zeros(48, 48).byte()] * 4, indices], 0)
    # (x/255 − 0.5) / 0.25 in float32.
    torch.testing.assert_close(batch[0][0], images[0] / 255 * 4 - 2, rtol=0, atol=1e-6)
    assert torch.equal(data.as_bytes(batch[0][0]), images[0])


@pytest.mark.parametrize("name", ["rows", "columns", "scenes"])
def test_options_out_of_range(name):
    with pytest.raises(ValueError, match=f"data.{name}: expected a positive number, got 0"):
        DigitScenesDataModule(**{name: 0})
