"""What the data modules of image classification share: names, pictures, labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from tasks.classification.transforms import AutoAugment, augmentations
from tasks.data import BaseDataModule, Examples, SeededDataset
from tasks.file_list import FileList
from tasks.normalize import Colour, normalize


class ImageFiles:
    """Transformed (image, label) pairs of files.

    Args:
        files: Paths and labels.
        steps: From a path to the image.
    """

    def __init__(self, files: FileList, steps: list[Callable[[Any], Any]]) -> None:
        self.files, self.transform = files, v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.transform(self.files.path(index)), int(self.files.labels[index])


class ClassificationDataModule(BaseDataModule):
    """Images and their classes.

    A subclass builds `view(split, training)`, `labels_of(split)` and `image_steps()`.

    Attributes:
        mean: Mean colour that the network's input is normalised by, of levels in [0, 1].
        std: Standard deviation that it is divided by.
        class_names: A name for each class, where there are any.
    """

    mean: ClassVar[Colour]
    std: ClassVar[Colour]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names: list[str] = []

    @abstractmethod
    def view(self, split: str, training: bool) -> Examples:
        """Examples of "train", "val" or "test", under the augmentation of training or as evaluated."""

    @abstractmethod
    def labels_of(self, split: str) -> NDArray[np.int64]:
        """(N,) classes of "train", "val" or "test"."""

    @abstractmethod
    def image_steps(self) -> list[Callable[[Any], Any]]:
        """Steps from an image (3, H, W) of bytes, of any size, to its evaluation view."""

    def examples(self, split: str) -> Examples:
        """Augmented for "train", the evaluation view for the others."""
        return self.view(self._source(split), training=split == "train")

    def labels(self, split: str) -> NDArray[np.int64]:
        """(N,) classes of a split; no image is decoded."""
        return self.labels_of(self._source(split))

    def picture(self, split: str, index: int) -> Tensor:
        """Evaluation view of a sample as bytes (3, H, W), for reports."""
        examples = self.view(self._source(split), training=False)
        return self.as_bytes(SeededDataset(examples, self.seed)[0, index][0])

    def as_bytes(self, image: Tensor) -> Tensor:
        """An example's image as bytes."""
        return image

    def sample_name(self, split: str, index: int) -> str:
        """Name of a sample: the path of an image file, else the index."""
        return self.name_of(self._source(split), index)

    def name_of(self, split: str, index: int) -> str:
        """Name of a sample of "train", "val" or "test"."""
        return str(index)

    def class_name(self, index: int) -> str:
        """Name of a class, its number where it has none."""
        return self.class_names[index] if self.class_names else str(index)

    def _source(self, split: str) -> str:
        return "test" if split == "predict" else split


class ImageDataModule(ClassificationDataModule):
    """Images that travel as bytes from the loaders and are normalised on the device.

    Args:
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        auto_augment: Automatic augmentation of the training images, with torchvision's defaults.
        color_jitter: Range j of the factors [1 − j, 1 + j] on brightness, contrast and saturation.
        hue_jitter: Greatest turn of the hue either way, as a share of the whole circle.
        erasing: Probability of erasing a rectangle, filled with the mean colour.
        repeats: Times that an image comes in a training epoch, each time augmented anew; the epoch is as
            long as ever.
        **kwargs: Loaders, see BaseDataModule.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int = 8,
        auto_augment: AutoAugment | None = None,
        color_jitter: float = 0.0,
        hue_jitter: float = 0.0,
        erasing: float = 0.0,
        repeats: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, **kwargs)
        if color_jitter < 0:
            raise ValueError(f"data.color_jitter: expected a number ≥ 0, got {color_jitter}")
        if not 0 <= hue_jitter <= 0.5:
            raise ValueError(f"data.hue_jitter: expected a number in [0, 0.5], got {hue_jitter}")
        if not 0 <= erasing <= 1:
            raise ValueError(f"data.erasing: expected a probability, got {erasing}")
        if repeats < 1:
            raise ValueError(f"data.repeats: expected a positive number, got {repeats}")
        self.auto_augment, self.erasing = auto_augment, erasing
        self.color_jitter, self.hue_jitter = color_jitter, hue_jitter
        self.repeats = repeats

    def augmentations(self, policy: str = "imagenet") -> list[Callable[[Any], Any]]:
        """The options' steps behind crop and flip; AutoAugment takes the policy of a data set."""
        return augmentations(
            self.auto_augment, self.color_jitter, self.erasing, self.mean, policy, self.hue_jitter
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the bytes of a batch, in the precision of the run."""
        images, *others = batch
        images = normalize(images, self.mean, self.std)
        return [self.trainer.precision_plugin.convert_input(images) if self.trainer else images, *others]
