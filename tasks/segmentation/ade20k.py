"""ADE20K scene parsing (ADEChallengeData2016): `images/` and `annotations/`, 150 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.names import distinct
from tasks.segmentation.data import FilesDataModule
from tasks.segmentation.labels import ade20k
from tasks.segmentation.metrics import ADE20KScores
from tasks.segmentation.pairs import Layout

_SPLITS = {"train": "training", "val": "validation", "test": "validation"}


class ADE20KDataModule(FilesDataModule):
    """150 classes of things and stuff; what is none of them is ignored.

    Labels of the test split are not public: the validation split is also the test split. Class names come
    from `objectInfo150.txt` where it is there.

    Args:
        root: Folder that holds `images` and `annotations`.
        crop_size: Height and width of the training crops.
        scale: Longer and shorter side of the frame that training images are fitted into.
        **kwargs: Augmentation and loaders, see FilesDataModule.
    """

    def __init__(
        self,
        root: str,
        crop_size: tuple[int, int] = (512, 512),
        scale: tuple[int, int] = (2048, 512),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, crop_size, scale, **kwargs)
        info = self.root / "objectInfo150.txt"
        self.labels = ade20k(read_object_info(info) if info.is_file() else None)

    def scores(self) -> ADE20KScores:
        """With the mean of mIoU and pixel accuracy."""
        return ADE20KScores(self.num_classes)

    def layout(self, split: str) -> Layout:
        """One folder a split; image and mask differ in the ending."""
        folder = _SPLITS[split]
        return Layout(self.root / "images" / folder, self.root / "annotations" / folder, ".jpg", ".png")


def read_object_info(path: Path) -> tuple[str, ...]:
    """The first name of each class in `objectInfo150.txt`: lines Idx, Ratio, Train, Val, Name by tabs.

    Raises:
        UserError: If it cannot be read or does not name the classes 1 to 150 in order.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    numbers = [str(number) for number in range(1, 151)]
    if [row[0].strip() for row in rows] != numbers:
        raise UserError(f"{path}: expected a line for each of the classes 1 to 150, got {len(rows)} lines")
    return tuple(distinct([row[-1].split(",")[0].strip() for row in rows], numbers))
