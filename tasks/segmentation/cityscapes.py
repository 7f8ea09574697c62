"""Cityscapes: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.segmentation.data import FilesDataModule
from tasks.segmentation.labels import CITYSCAPES
from tasks.segmentation.masks import read_ids
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
        )

    def scores(self) -> CityscapesScores:
        """With iIoU where instance ids are there."""
        return CityscapesScores()

    def instance_ids(self, split: str, index: int) -> Tensor | None:
        """`*_gtFine_instanceIds.png` (H, W): 1000 · id + number for objects, the id for everything else."""
        if split == "predict" and self.predict_images:
            return None
        pairs = self.pairs("test" if split == "predict" else split)
        path = self.layout("test" if split == "predict" else split).masks / (
            pairs[index].name + "_gtFine_instanceIds.png"
        )
        return torch.from_numpy(read_ids(path)) if path.is_file() else None
