"""Augmentation and evaluation views of photographs, as torchvision's reference training has them.

Images stay uint8 all the way: they travel as bytes from the loaders, and are normalised on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torchvision.transforms import v2

from tasks.images import RandomCropFlip, read_image
from tasks.normalize import Colour

AutoAugment = Literal["autoaugment", "randaugment", "trivialaugment", "augmix"]
Interpolation = Literal["bilinear", "bicubic"]


def read_crop_flip(size: int, interpolation: Interpolation) -> list[Callable[[Any], Any]]:
    """Steps from a path to a random crop, mirrored half the time, uint8 (3, size, size).

    The crop has 8–100 % of the area and a ratio of 3:4–4:3 (Szegedy et al. 2015).
    """
    return [read_image, RandomCropFlip(size, interpolation)]


def augmentations(
    auto_augment: AutoAugment | None,
    color_jitter: float,
    erasing: float,
    mean: Colour,
    policy: str = "imagenet",
    hue_jitter: float = 0.0,
) -> list[Callable[[Any], Any]]:
    """Steps behind crop and flip: automatic augmentation, colour jitter, erasing, each where asked for.

    Geometric operations of the automatic augmentations are bilinear, the best that tensors have.

    Args:
        auto_augment: Policy, with torchvision's defaults; None for none.
        color_jitter: Range of the factors on brightness, contrast and saturation, [1 − j, 1 + j].
        erasing: Probability of erasing a rectangle (Zhong et al. 2020).
        mean: Mean colour of the data, in [0, 1]: what is erased takes it.
        policy: Data set whose policy AutoAugment takes.
        hue_jitter: Greatest turn of the hue either way, as a share of the whole circle.
    """
    steps: list[Callable[[Any], Any]] = []
    mode = v2.InterpolationMode.BILINEAR
    if auto_augment == "autoaugment":
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=mode))
    elif auto_augment == "randaugment":
        steps.append(v2.RandAugment(interpolation=mode))
    elif auto_augment == "trivialaugment":
        steps.append(v2.TrivialAugmentWide(interpolation=mode))
    elif auto_augment == "augmix":
        steps.append(v2.AugMix(interpolation=mode))
    if color_jitter or hue_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter, hue_jitter))
    if erasing:
        steps.append(v2.RandomErasing(erasing, value=[round(255 * level) for level in mean]))
    return steps


def evaluation_view(resize: int, size: int, interpolation: Interpolation) -> list[Callable[[Any], Any]]:
    """Steps to the evaluation view: the shorter side to `resize`, the central square of `size`."""
    mode = v2.InterpolationMode(interpolation)
    return [v2.Resize(resize, interpolation=mode, antialias=True), v2.CenterCrop(size)]
