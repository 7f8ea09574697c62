"""Cityscapes: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.errors import UserError
from tasks.segmentation.data import FilesDataModule
from tasks.segmentation.labels import CITYSCAPES
from tasks.segmentation.masks import read_instances
from tasks.segmentation.metrics import CityscapesScores
from tasks.segmentation.pairs import Layout

_SPLITS = {"train": "train", "val": "val", "test": "val"}


class CityscapesDataModule(FilesDataModule):
    """19 classes of street scenes, from the `*_gtFine_labelIds.png` of the data set as it is shipped.

    Labels of the test split are not public: the validation split is also the test split. To predict test
    images, name their folder (`leftImg8bit/test`).

    Args:
        root: Folder that holds `leftImg8bit` and `gtFine`.
        crop_size: Height and width of the training crops.
        scale: Longer and shorter side of the frame that training images are fitted into.
        **kwargs: Augmentation and loaders, see FilesDataModule.
    """

    labels = CITYSCAPES

    def __init__(
        self,
        root: str,
        crop_size: tuple[int, int] = (512, 1024),
        scale: tuple[int, int] = (2048, 1024),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, crop_size, scale, **kwargs)

    def layout(self, split: str) -> Layout:
        """Cities in folders; image and mask differ in the ending."""
        folder = _SPLITS[split]
        return Layout(
            self.root / "leftImg8bit" / folder,
            self.root / "gtFine" / folder,
            "_leftImg8bit.png",
            "_gtFine_labelIds.png",
            "_gtFine_instanceIds.png",
        )

    def scores(self) -> CityscapesScores:
        """With iIoU where instance ids are there."""
        return CityscapesScores()

    def setup(self, stage: str) -> None:
        """List the files that a stage reads; iIoU needs the instance ids of all tested images, or of none."""
        super().setup(stage)
        if stage in ("fit", "test"):
            pairs = self.pairs("test")
            if lacking := self.layout("test").lacking_instances(pairs):
                raise UserError(
                    f"{lacking[0]}: expected instance ids for every image or for none, got none for "
                    f"{len(lacking)} of {len(pairs)}"
                )

    def instance_ids(self, split: str, index: int, size: torch.Size) -> Tensor | None:
        """`*_gtFine_instanceIds.png` (H, W): 1000 · id + number for objects, the id for everything else."""
        image = self.pairs(split)[index].image
        path = self.layout(split).instances_of(image)
        return read_instances(path, size, image) if path else None
