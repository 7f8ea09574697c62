"""What the data modules of segmentation share: pairs of files, batches of bytes, images of any size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tasks.data import BaseDataModule, Examples
from tasks.errors import UserError
from tasks.normalize import Colour, normalize
from tasks.segmentation.labels import Labels
from tasks.segmentation.metrics import SegmentationScores
from tasks.segmentation.pairs import Layout, Pair, PairFiles, images_to_predict
from tasks.segmentation.transforms import Joint, training_steps

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
"""Splits that a stage reads."""


def collate_sizes(samples: list[tuple[Tensor, Tensor, int]]) -> list[Any]:
    """A list of images, one of masks, and the indices: images keep their sizes, nothing is padded."""
    images, masks, indices = zip(*samples, strict=True)
    return [list(images), list(masks), torch.tensor(indices)]


class SegmentationDataModule(BaseDataModule):
    """Images and a class for each of their pixels.

    Training batches are tensors (N, 3, H, W) and (N, H, W). Evaluation batches are lists of images and masks
    in their own sizes: padding them to a common one would change the statistics of each, and so its result,
    with the batch that it is in. Both travel as bytes, and are normalised on the device.

    Args:
        predict_images: An image or a folder of images to predict in place of the test split.
        **kwargs: Loaders, see BaseDataModule.

    Attributes:
        labels: The classes.
        mean: Mean colour that the network's input is normalised by, of levels in [0, 1].
        std: Standard deviation that it is divided by.
    """

    mean: ClassVar[Colour]
    std: ClassVar[Colour]
    labels: Labels

    def __init__(self, predict_images: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predict_images = Path(predict_images).expanduser() if predict_images else None
        self._to_predict: list[Pair] | None = None

    @abstractmethod
    def view(self, split: str) -> Examples:
        """Examples of "train" (augmented), "val" or "test"."""

    @abstractmethod
    def name_of(self, split: str, index: int) -> str:
        """Name of a sample of "train", "val" or "test"."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def class_name(self, index: int) -> str:
        """Name of a class."""
        return self.labels.names[index]

    def examples(self, split: str) -> Examples:
        """Augmented for "train", in full for the others."""
        if split == "predict" and self.predict_images:
            return PairFiles(self._images_to_predict(self.predict_images), self.labels)
        return self.view(_source(split))

    def sample_name(self, split: str, index: int) -> str:
        """Name of an image, without its suffix."""
        if split == "predict" and self.predict_images:
            return self._images_to_predict(self.predict_images)[index].name
        return self.name_of(_source(split), index)

    def collate(self, split: str) -> Callable[[list[Any]], Any] | None:
        """Lists in evaluation."""
        return None if split == "train" else collate_sizes

    def scores(self) -> SegmentationScores:
        """New scores by the protocol of the data set."""
        return SegmentationScores(self.num_classes)

    def instance_ids(self, split: str, index: int, size: torch.Size) -> Tensor | None:
        """Instance ids of `size` (H, W) of a sample, where the data set has them."""
        return None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[Any]:
        """Normalise the bytes of a batch in the precision of the run; masks become int64."""
        images, masks, indices = batch
        if isinstance(images, Tensor):
            return [self._normalized(images), masks.long(), indices]
        return [[self._normalized(image[None])[0] for image in images], [m.long() for m in masks], indices]

    def as_bytes(self, image: Tensor) -> Tensor:
        """Undo the normalisation of an image (3, H, W)."""
        mean, std = (
            torch.tensor(levels, device=image.device)[:, None, None] for levels in (self.mean, self.std)
        )
        return (255 * (image.float() * std + mean)).round_().clamp_(0, 255).to(torch.uint8)

    def _normalized(self, images: Tensor) -> Tensor:
        images = normalize(images, self.mean, self.std)
        if self.trainer:
            images = self.trainer.precision_plugin.convert_input(images)
        return images

    def _images_to_predict(self, given: Path) -> list[Pair]:
        if self._to_predict is None:
            self._to_predict = images_to_predict(given)
        return self._to_predict


class FilesDataModule(SegmentationDataModule):
    """Pairs of files: random crops of rescaled images for training, whole images for evaluation.

    A subclass has `labels` and says where the files of a split are in `layout(split)`.

    Args:
        root: Folder of the data set.
        crop_size: Height and width of the training crops.
        scale: Longer and shorter side of the frame that training images are fitted into.
        scale_factors: Range of the random multiple of that frame.
        max_class_ratio: Share of a crop's labelled pixels that one class may have; ten boxes are tried.
        photometric_distortion: Whether brightness, contrast, saturation and hue of training images vary.
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        **kwargs: Loaders, see BaseDataModule.
    """

    mean: ClassVar[Colour] = (0.485, 0.456, 0.406)
    std: ClassVar[Colour] = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str,
        crop_size: tuple[int, int],
        scale: tuple[int, int],
        scale_factors: tuple[float, float] = (0.5, 2.0),
        max_class_ratio: float = 0.75,
        photometric_distortion: bool = True,
        batch_size: int = 2,
        num_workers: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, **kwargs)
        for name, values in {"crop_size": crop_size, "scale": scale}.items():
            if min(values) < 1:
                raise ValueError(f"data.{name}: expected two positive numbers, got {list(values)}")
        if not 0 < scale_factors[0] <= scale_factors[1]:
            raise ValueError(
                f"data.scale_factors: expected two positive numbers in order, got {list(scale_factors)}"
            )
        if not 0 < max_class_ratio <= 1:
            raise ValueError(f"data.max_class_ratio: expected a number in (0, 1], got {max_class_ratio}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir() and self.predict_images is None:
            raise UserError(f"data.root: expected a folder, got {root}, which is none")
        steps = training_steps(
            scale, scale_factors, crop_size, max_class_ratio, photometric_distortion, self.mean
        )
        self.augment = Joint(*steps)
        self._pairs: dict[str, list[Pair]] = {}

    @abstractmethod
    def layout(self, split: str) -> Layout:
        """Where the files of "train", "val" or "test" are."""

    def setup(self, stage: str) -> None:
        """List the files that a stage reads."""
        for split in STAGES[stage]:
            self.sample_name(split, 0)

    def pairs(self, split: str) -> list[Pair]:
        """Files of "train", "val" or "test", listed once."""
        if split not in self._pairs:
            self._pairs[split] = self.layout(split).pairs()
        return self._pairs[split]

    def view(self, split: str) -> Examples:
        """Pairs of one split."""
        return PairFiles(self.pairs(split), self.labels, self.augment if split == "train" else None)

    def name_of(self, split: str, index: int) -> str:
        """Path of an image relative to the folder of its split, without suffix."""
        return self.pairs(split)[index].name


def _source(split: str) -> str:
    return "test" if split == "predict" else split
