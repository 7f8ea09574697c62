"""Learning rates of the parts, the frame of an evaluation, and checkpoints of plain data."""

import pytest
import torch
from torch.nn import functional as F

from tasks.segmentation.inference import Inference
from tasks.segmentation.module import SegmentationModule


@pytest.mark.parametrize("norm", ["bn", "ssn", "en"])
def test_the_head_has_its_own_learning_rate(norm):
    module = SegmentationModule("deeplabv3plus", "resnet18", 5, norm, head_lr=10.0, norm_weight_decay=1e-5)
    groups = module.parameter_groups(0.02)
    rate_of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rate_of) == sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    for name, parameter in module.network.named_parameters():
        is_mixture = name.endswith(("mean_weight", "var_weight")) and norm == "ssn"
        rate = 0.02 * (1 if name.startswith("encoder.") else 10) * (0.1 if is_mixture else 1)
        assert rate_of[id(parameter)][0] == pytest.approx(rate), name
        if parameter.dim() == 4:
            assert rate_of[id(parameter)][1] == 1e-4, name
    assert len({group["name"] for group in groups}) == len(groups)
    same = SegmentationModule("deeplabv3plus", "resnet18", 5, norm).parameter_groups(0.02)
    assert {group["name"] for group in same} <= {"weights", "normalizers", "mixtures", "biases"}


def network(images):
    """Two classes by brightness, in a quarter of the resolution."""
    coarse = F.avg_pool2d(images.mean(1, keepdim=True), 4, ceil_mode=True)
    logits = F.interpolate(coarse, images.shape[-2:], mode="nearest")
    return torch.cat([logits, -logits], dim=1)


@pytest.mark.parametrize(
    ("size", "inside"), [((40, 60), (64, 96)), ((90, 40), (128, 57)), ((300, 30), (128, 13))]
)
def test_images_are_resized_into_the_frame_and_back(size, inside):
    """64 × 128: the shorter side to 64, unless the longer would pass 128."""
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    seen = []

    def watched(images):
        seen.append(tuple(images.shape[-2:]))
        return network(images)

    found = Inference(frame=(128, 64)).logits(watched, image)
    assert seen == [inside] and found.shape == (1, 2, *size)
    resized = F.interpolate(image, inside, mode="bilinear", antialias=inside[0] < size[0])
    expected = F.interpolate(network(resized), size, mode="bilinear")
    # The same operations.
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    seen.clear()
    Inference(frame=(128, 64), scales=(0.5, 1.0)).logits(watched, image)
    assert seen == [tuple(round(0.5 * min(128 / max(size), 64 / min(size)) * s) for s in size), inside]


def test_a_frame_has_two_positive_sides():
    with pytest.raises(ValueError, match=r"model.inference.frame: expected positive numbers, got \[128, 0\]"):
        Inference(frame=(128, 0))


def test_hyper_parameters_are_plain_data(tmp_path):
    module = SegmentationModule("digits_unet", "", 5, aux_weight=0.0, inference=Inference(flip=True))
    torch.save({"hyper_parameters": dict(module.hparams)}, tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["inference"]["flip"] is True and stored["network"] == "digits_unet"
