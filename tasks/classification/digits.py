"""The embedded digits: real 8×8 handwriting, enlarged, under varying colours and blur, or under styles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from tasks.classification.styled import StyledDataModule
from tasks.classification.styles import Style
from tasks.data import Examples
from tasks.splits import stratified_split

_SPLITS = {"train": 0.65, "val": 0.15, "test": 0.2}


class Digits:
    """Transformed (image, digit) pairs.

    Args:
        images: (N, 1, 8, 8), values in [0, 1].
        labels: (N,) digits.
        transform: (3, 8, 8) image → network input.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.transform(self.images[index].expand(3, -1, -1)), int(self.labels[index])


class RandomTint(v2.Transform):  # type: ignore[misc]
    """Recolour a grey-level image: ink and paper take two random colours `contrast` apart or more.

    Args:
        contrast: Least distance, in brightness, of the two.
    """

    def __init__(self, contrast: float) -> None:
        super().__init__()
        self.contrast = contrast

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the two colours of one image."""
        distance = self.contrast + (1 - self.contrast) * torch.rand(())
        paper = (1 - distance) * torch.rand(())
        colours = torch.stack([paper, paper + distance])
        hue = 0.3 * self.contrast * (torch.rand(2, 3) - 0.5)
        if torch.rand(()) < 0.5:
            colours = colours.flip(0)
        return {"colours": (colours[:, None] + hue).clamp(0, 1)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Blend from paper to ink by the grey level."""
        paper, ink = params["colours"][:, :, None, None]
        blended: Tensor = paper + (ink - paper) * inpt
        return blended


class DigitsDataModule(StyledDataModule):
    """scikit-learn's 1,797 handwritten digits as colour images; nothing is downloaded.

    The split is stratified and fixed: 65 % training, 15 % validation, 20 % test, no digit in two of them.
    Per-image statistics differ, so that the choice of normalizer matters. With `styles`, each image has its
    own, the same in every epoch. Without, each has two colours and a blur, drawn anew in every training epoch
    and fixed in validation and test.

    Args:
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order, augmentation and styles; the CLI sets it to `seed_everything`.
        image_size: Height and width of the images.
        contrast: Least difference in brightness of ink and paper, in (0, 1]; None for 0.3, or for `styles`.
        blur: Largest standard deviation of the blur, in pixels of the enlarged image, 0 for none; None for
            1.2, or for `styles`.
        styles: Styles of the images in place of colours and blur, see `tasks.classification.styles`; [] for
            white ink on black paper, None for colours and blur.
        held_back: Those of the styles that test images alone have.
        train_samples: How many of the training digits there are, the same in every run and each digit in its
            share; None for all.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int = 32,
        contrast: float | None = None,
        blur: float | None = None,
        styles: list[Style] | None = None,
        held_back: list[Style] | None = None,
        train_samples: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            image_size=image_size,
            least_size=8,
            styles=styles,
            held_back=held_back,
            train_samples=train_samples,
        )
        if contrast is not None and not 0 < contrast <= 1:
            raise ValueError(f"data.contrast: expected a number in (0, 1], got {contrast}")
        if blur is not None and blur < 0:
            raise ValueError(f"data.blur: expected a number ≥ 0, got {blur}")
        for name, value in {"contrast": contrast, "blur": blur}.items():
            if styles is not None and value is not None:
                raise ValueError(
                    f"data.{name}: expected none beside data.styles, which replace colours and blur, got "
                    f"{value}: leave it out, or set data.styles to null"
                )
        self.contrast = 0.3 if contrast is None else contrast
        self.blur = 1.2 if blur is None else blur

    @property
    def num_classes(self) -> int:
        """Ten digits."""
        return 10

    def setup(self, stage: str) -> None:
        """Read and split the digits."""
        if self.rows:
            return
        self.images, self.digits, rows = read_digits()
        self._take(self.images, self.digits, rows)

    def augmentation(self) -> v2.Transform:
        """A small turn, shift, change of size and shear."""
        return augment_digits()

    def view(self, split: str, training: bool) -> Examples:
        """Digits of one split."""
        if self.styles is not None:
            return super().view(split, training)
        rows = self.rows[split]
        return Digits(self.images[rows], self.digits[rows], self._transform(training))

    def _transform(self, training: bool) -> v2.Transform:
        steps: list[v2.Transform] = [self._resize()]
        if training:
            steps += [self.augmentation()]
        if self.blur:
            steps += [v2.GaussianBlur(kernel_size=7, sigma=(0.1, max(self.blur, 0.1)))]
        return v2.Compose([*steps, RandomTint(self.contrast), v2.Normalize(self.mean, self.std)])


def augment_digits() -> v2.Transform:
    """What keeps a digit what it is."""
    return v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5.0)


def read_digits() -> tuple[Tensor, Tensor, dict[str, NDArray[np.int64]]]:
    """Images (N, 1, 8, 8) in [0, 1], digits (N,), and the rows of each split."""
    from sklearn.datasets import load_digits

    table = load_digits()
    images = torch.from_numpy(table.images).float().div(16)[:, None]
    return images, torch.from_numpy(table.target).long(), stratified_split(table.target, _SPLITS)
