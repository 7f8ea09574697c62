"""The embedded digits: real 8×8 handwriting, enlarged, under varying contrast, colour and blur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from tasks.classification.data import ClassificationDataModule
from tasks.data import Examples
from tasks.normalize import Colour
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


class DigitsDataModule(ClassificationDataModule):
    """scikit-learn's 1,797 handwritten digits as colour images; nothing is downloaded.

    The split is stratified and fixed: 65 % training, 15 % validation, 20 % test, no digit in two of them.
    Each image has its own contrast, colours and blur, drawn anew in every training epoch and fixed in
    validation and test, so that per-image statistics differ and the choice of normalizer matters.

    Args:
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order and augmentation; the CLI sets it to `seed_everything`.
        image_size: Height and width of the images.
        contrast: Least difference in brightness of ink and paper, in (0, 1].
        blur: Largest standard deviation of the blur, in pixels of the enlarged image; 0 for none.
    """

    mean: ClassVar[Colour] = (0.5, 0.5, 0.5)
    std: ClassVar[Colour] = (0.25, 0.25, 0.25)

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int = 32,
        contrast: float = 0.3,
        blur: float = 1.2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if image_size < 8:
            raise ValueError(f"data.image_size: expected at least 8, got {image_size}")
        if not 0 < contrast <= 1:
            raise ValueError(f"data.contrast: expected a number in (0, 1], got {contrast}")
        if blur < 0:
            raise ValueError(f"data.blur: expected a number ≥ 0, got {blur}")
        self.image_size, self.contrast, self.blur = image_size, contrast, blur
        self.rows: dict[str, NDArray[np.int64]] = {}

    @property
    def num_classes(self) -> int:
        """Ten digits."""
        return 10

    def setup(self, stage: str) -> None:
        """Read and split the digits."""
        if self.rows:
            return
        from sklearn.datasets import load_digits

        table = load_digits()
        self.images = torch.from_numpy(table.images).float().div(16)[:, None]
        self.digits = torch.from_numpy(table.target).long()
        self.rows = stratified_split(table.target, _SPLITS)

    def view(self, split: str, training: bool) -> Examples:
        """Digits of one split."""
        rows = self.rows[split]
        return Digits(self.images[rows], self.digits[rows], self._transform(training))

    def labels_of(self, split: str) -> NDArray[np.int64]:
        """Digits of one split."""
        return self.digits[self.rows[split]].numpy()

    def name_of(self, split: str, index: int) -> str:
        """Row of the digit in scikit-learn's table."""
        return str(self.rows[split][index])

    def image_steps(self) -> list[Callable[[Any], Any]]:
        """Enlarge or shrink to a square; an image has its own colours."""
        return [self._resize(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]

    def as_bytes(self, image: Tensor) -> Tensor:
        """Undo the normalisation."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (255 * (image * std + mean)).round().clamp(0, 255).to(torch.uint8)

    def _resize(self) -> v2.Transform:
        return v2.Resize([self.image_size, self.image_size], antialias=True)

    def _transform(self, training: bool) -> v2.Transform:
        steps: list[v2.Transform] = [self._resize()]
        if training:
            steps += [v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5.0)]
        if self.blur:
            steps += [v2.GaussianBlur(kernel_size=7, sigma=(0.1, max(self.blur, 0.1)))]
        return v2.Compose([*steps, RandomTint(self.contrast), v2.Normalize(self.mean, self.std)])
