"""The positive control: digits of which one half must be seen at any contrast, and the other half by it.

What is good for one half is bad for the other: a normalizer that takes a sample's contrast away makes the
digits easy and the contrast levels hard. A choice that depends on the sample pays, though one mixture for all
samples can do as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torchvision.transforms import v2

from tasks.classification.digits import augment_digits, read_digits
from tasks.classification.styled import StyledDataModule
from tasks.classification.styles import CONTRAST_SPREAD, ImageStyles, Style, Value, apply_contrast
from tasks.samplers import seed_for

DIGITS, LEVELS = 10, 4
_STEPS = (-1.5, -0.5, 0.5, 1.5)
"""Logarithm of the contrast at each level, in standard deviations of that of the other half."""
_JITTER = 0.15
_JITTER_NUMBER = 100  # tells these draws from those of the styles
_MARK = 5 / 32
_STYLES: list[Style] = ["contrast", "brightness"]


class ControlStyles:
    """Mark, contrast and brightness of an image.

    Args:
        levels: (N,) contrast level of each row, -1 where the label is the digit.
        seed: Seed of the draws.
    """

    def __init__(self, levels: NDArray[np.int64], seed: int) -> None:
        self.levels, self.seed = levels, seed
        self.free, self.brightness = ImageStyles(_STYLES, seed), ImageStyles(["brightness"], seed)

    def of(self, row: int) -> dict[str, Value]:
        """Contrast and brightness, and whether the image is marked: its label is then the contrast."""
        level = int(self.levels[row])
        if level < 0:
            return {"marked": False, **self.free.of(row)}
        return {"marked": True, "contrast": self._factor(level, row), **self.brightness.of(row)}

    def __call__(self, image_CHW: Tensor, row: int) -> Tensor:
        """The image under its styles, with the mark where the label is the contrast."""
        level = int(self.levels[row])
        if level < 0:
            return self.free(image_CHW, row)
        return self.brightness(apply_contrast(marked(image_CHW), self._factor(level, row)), row)

    def _factor(self, level: int, row: int) -> float:
        generator = Generator().manual_seed(seed_for(self.seed, _JITTER_NUMBER, row))
        jitter = _JITTER * (2 * float(torch.rand((), generator=generator)) - 1)
        return math.exp(CONTRAST_SPREAD * (_STEPS[level] + jitter))


class DigitsControlDataModule(StyledDataModule):
    """scikit-learn's digits with 14 classes; nothing is downloaded.

    Half of the images of each digit are to be read: the label is the digit, contrast and brightness vary as
    under the styles of these names. The other half have a filled square of 5 of 32 pixels in the upper left
    corner, and one of four contrast levels as their label, whatever the digit; brightness varies too. Halves
    and levels are the same in every run, in each split and for each digit alike; splits and augmentation are
    those of the digits.

    Args:
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order, augmentation, contrast and brightness; the CLI sets it to `seed_everything`.
        image_size: Height and width of the images.
        train_samples: How many of the training images there are, the same in every run and each class in its
            share; None for all.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int = 32,
        train_samples: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            image_size=image_size,
            least_size=8,
            train_samples=train_samples,
        )
        self.class_names = [f"digit {digit}" for digit in range(DIGITS)]
        self.class_names += [f"contrast {level + 1}" for level in range(LEVELS)]
        self.levels: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def num_classes(self) -> int:
        """Ten digits and four contrast levels."""
        return DIGITS + LEVELS

    def setup(self, stage: str) -> None:
        """Read and split the digits, and choose halves and levels."""
        if self.rows:
            return
        images, digits, rows = read_digits()
        self.levels = control_levels(digits.numpy(), rows)
        levels = torch.from_numpy(self.levels)
        self._take(images, torch.where(levels < 0, digits, DIGITS + levels), rows)

    def augmentation(self) -> v2.Transform:
        """That of the digits."""
        return augment_digits()

    def style(self, split: str) -> Callable[[Tensor, int], Tensor]:
        """The same in all splits."""
        return ControlStyles(self.levels, self.seed)

    def style_of(self, split: str, index: int) -> dict[str, Value]:
        """Contrast and brightness of an image, and whether it is marked."""
        row = int(self.rows[self._source(split)][index])
        return ControlStyles(self.levels, self.seed).of(row)


def control_levels(digits: NDArray[np.int64], rows: dict[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """(N,) contrast level of each row, -1 for those that are to be read.

    In each split, the images of a digit take turns: read, level 1, read, level 2, …
    """
    levels = np.full(len(digits), -1)
    for split in rows.values():
        for digit in range(DIGITS):
            # Digits begin at different levels, or the first would have more images than the last.
            own = split[digits[split] == digit][1::2]
            levels[own] = (np.arange(len(own)) + digit) % LEVELS
    return levels


def marked(image_CHW: Tensor) -> Tensor:
    """The image with a filled square of ink in its upper left corner, a pixel from the edge."""
    side = max(round(_MARK * image_CHW.shape[-1]), 1)
    image_CHW = image_CHW.clone()
    image_CHW[:, 1 : 1 + side, 1 : 1 + side] = 1
    return image_CHW
