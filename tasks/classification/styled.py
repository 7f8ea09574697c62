"""Grey images shown under styles: what the data modules of digits, fashion and the control share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from tasks.classification.data import ClassificationDataModule
from tasks.classification.styles import ImageStyles, Style, Value, check_styles
from tasks.data import Examples
from tasks.errors import UserError
from tasks.normalize import Colour
from tasks.splits import stratified_order


class StyledImages:
    """(image, label) pairs: a grey image as it is read, augmented, styled, normalised.

    Args:
        images: (N, 1, H, W), bytes, or levels in [0, 1].
        labels: (N,) classes.
        rows: (N,) rows of the images in the data set.
        augment: (3, H, W) in [0, 1] → the same, drawn anew in each epoch.
        style: (image, row) ↦ the image under its styles.
        normalise: → the network's input.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        rows: NDArray[np.int64],
        augment: v2.Transform,
        style: Callable[[Tensor, int], Tensor],
        normalise: v2.Transform,
    ) -> None:
        self.images, self.labels, self.rows = images, labels, rows
        self.augment, self.style, self.normalise = augment, style, normalise

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        row = int(self.rows[index])
        image = v2.functional.to_dtype(self.images[row], torch.float32, scale=True).expand(3, -1, -1)
        return self.normalise(self.style(self.augment(image), row)), int(self.labels[row])


class StyledDataModule(ClassificationDataModule):
    """Grey images of a data set, each under its own styles.

    A subclass reads images, labels and rows in `setup`, and says how training images are augmented.

    Args:
        image_size: Height and width of the images.
        least_size: The smallest `image_size`.
        styles: Styles of the images, see `tasks.classification.styles`; none for grey images as they are.
        held_back: Those of the styles that test images alone have.
        train_samples: How many training images there are, the same in every run and each class in its share;
            None for all.
        **kwargs: Loaders, see BaseDataModule.

    Attributes:
        grey: (N, 1, H, W) images of all splits at the size of the network's input, bytes or levels in [0, 1].
        labels_by_row: (N,) classes.
        rows: Rows of each split.
    """

    mean: ClassVar[Colour] = (0.5, 0.5, 0.5)
    std: ClassVar[Colour] = (0.25, 0.25, 0.25)

    def __init__(
        self,
        *,
        image_size: int,
        least_size: int,
        styles: list[Style] | None = None,
        held_back: list[Style] | None = None,
        train_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if image_size < least_size:
            raise ValueError(f"data.image_size: expected at least {least_size}, got {image_size}")
        check_styles(styles, held_back)
        if train_samples is not None and train_samples < self.num_classes:
            raise ValueError(
                f"data.train_samples: expected an image for each of {self.num_classes} classes or more, "
                f"got {train_samples}"
            )
        self.image_size, self.train_samples = image_size, train_samples
        self.styles, self.held_back = styles, held_back or []
        self.grey = self.labels_by_row = torch.empty(0)
        self.rows: dict[str, NDArray[np.int64]] = {}

    def augmentation(self) -> v2.Transform:
        """What is done to the images in training."""
        return v2.Identity()

    def style_of(self, split: str, index: int) -> dict[str, Value]:
        """Value of each style that an image has."""
        split = self._source(split)
        return self._styles(split).of(int(self.rows[split][index]))

    def view(self, split: str, training: bool) -> Examples:
        """Images of one split under their styles."""
        augment = self.augmentation() if training else v2.Identity()
        normalise = v2.Normalize(self.mean, self.std)
        return StyledImages(
            self.grey, self.labels_by_row, self.rows[split], augment, self.style(split), normalise
        )

    def style(self, split: str) -> Callable[[Tensor, int], Tensor]:
        """(image, row) ↦ the image as a split shows it."""
        return self._styles(split)

    def labels_of(self, split: str) -> NDArray[np.int64]:
        """Classes of one split."""
        return self.labels_by_row.numpy()[self.rows[split]]

    def name_of(self, split: str, index: int) -> str:
        """Row of the image in the data set."""
        return str(self.rows[split][index])

    def image_steps(self) -> list[Callable[[Any], Any]]:
        """Enlarge or shrink to a square; an image has its own colours."""
        return [self._resize(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]

    def as_bytes(self, image: Tensor) -> Tensor:
        """Undo the normalisation; levels beyond black and white are cut off."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (255 * (image * std + mean)).round().clamp(0, 255).to(torch.uint8)

    def _styles(self, split: str) -> ImageStyles:
        hidden = () if split == "test" else self.held_back
        return ImageStyles([name for name in self.styles or () if name not in hidden], self.seed)

    def _resize(self) -> v2.Transform:
        return v2.Resize([self.image_size, self.image_size], antialias=True)

    def _take(self, images: Tensor, labels: Tensor, rows: dict[str, NDArray[np.int64]]) -> None:
        """Keep what `setup` has read, at its final size, with as many training images as asked for."""
        self.grey, self.labels_by_row = self._resize()(images), labels
        if self.train_samples is not None:
            available = len(rows["train"])
            if self.train_samples > available:
                raise UserError(
                    f"data.train_samples: expected at most the {available:,} training images that there are, "
                    f"got {self.train_samples:,}"
                )
            order = stratified_order(labels.numpy()[rows["train"]])[: self.train_samples]
            rows = {**rows, "train": np.sort(rows["train"][order])}
        self.rows = rows
