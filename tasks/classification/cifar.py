"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32×32 images, 50,000 for training and 10,000 for test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from tasks.classification.data import ImageDataModule
from tasks.classification.transforms import evaluation_view
from tasks.data import Examples
from tasks.errors import UserError
from tasks.normalize import Colour

_SIZE = 32


class ImageArray:
    """Transformed (image, label) pairs of an array.

    Args:
        images: (N, H, W, 3) bytes.
        labels: (N,) classes.
        steps: From an image (3, H, W) to the network's.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], steps: list[Callable[[Any], Any]]
    ) -> None:
        self.images, self.labels = images, labels
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()
        return self.transform(image), int(self.labels[index])


class _CIFARDataModule(ImageDataModule):
    """CIFAR as the literature uses it: the official test images are validation and test split both.

    Training images are padded by 4, cropped at random to 32×32 and flipped.

    Args:
        root: Folder that holds, or is to hold, the unpacked archive.
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        download: Whether to fetch the archive if it is not there.
        **kwargs: Loaders and augmentation, see ImageDataModule.
    """

    source: ClassVar[type[datasets.CIFAR10]]
    classes: ClassVar[int]

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        num_workers: int = 2,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, **kwargs)
        self.root, self.download = Path(root).expanduser(), download
        if not download and not (self.root / self.source.base_folder).is_dir():
            raise UserError(
                f"data.root: expected a folder {self.source.base_folder} in {root}, got none: unpack "
                f"{self.source.filename} there, or fetch it with data.download true"
            )
        self.arrays: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}

    @property
    def num_classes(self) -> int:
        """10 or 100."""
        return self.classes

    def prepare_data(self) -> None:
        """Fetch the archive where that is asked for; one process of a machine does."""
        if self.download:
            self._source_of(train=True, download=True)

    def setup(self, stage: str) -> None:
        """Read the arrays."""
        if self.arrays:
            return
        for split, train in (("train", True), ("val", False)):
            source = self._source_of(train, download=False)
            self.arrays[split] = source.data, np.asarray(source.targets)
            self.class_names = source.classes
        self.arrays["test"] = self.arrays["val"]

    def view(self, split: str, training: bool) -> Examples:
        """Images of one split."""
        if not training:
            return ImageArray(*self.arrays[split], self.image_steps())
        crop = v2.RandomCrop(_SIZE, padding=_SIZE // 8)
        steps = [crop, v2.RandomHorizontalFlip(), *self.augmentations("cifar10")]
        return ImageArray(*self.arrays[split], steps)

    def labels_of(self, split: str) -> NDArray[np.int64]:
        """Classes of one split."""
        return self.arrays[split][1]

    def image_steps(self) -> list[Callable[[Any], Any]]:
        """The shorter side to 32, the central square."""
        return evaluation_view(_SIZE, _SIZE, "bilinear")

    def _source_of(self, train: bool, download: bool) -> datasets.CIFAR10:
        try:
            return self.source(self.root, train=train, download=download)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.root: cannot use {self.source.__name__} in {self.root}: {error}"
            ) from error


class CIFAR10DataModule(_CIFARDataModule):
    """Ten classes of 6,000 images each."""

    source = datasets.CIFAR10
    classes = 10
    mean: ClassVar[Colour] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[Colour] = (0.2470, 0.2435, 0.2616)


class CIFAR100DataModule(_CIFARDataModule):
    """A hundred classes of 600 images each."""

    source = datasets.CIFAR100
    classes = 100
    mean: ClassVar[Colour] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[Colour] = (0.2673, 0.2564, 0.2762)
