"""ImageNet-1k and whatever has its layout: folders named by wnid, or list files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.models import ResNet50_Weights

from tasks.classification.folders import ImageFilesDataModule, common_classes, same_classes, scan
from tasks.classification.names import read_meta
from tasks.errors import UserError
from tasks.file_list import FileList, read_list
from tasks.names import distinct

_NAMES: list[str] = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
_ENDS = ("n01440764", "n15075141")  # first and last wnid of ImageNet-1k


class ImageNetDataModule(ImageFilesDataModule):
    """`root/{train,val}/<wnid>/*.JPEG`, or what `root/train.txt` and `root/val.txt` list.

    A class's label is the position of its wnid in sorted order. ImageNet's test labels are not public, so the
    validation split is also the test split. Lines of list files are `n01440764/x.JPEG 0`, relative to
    `root/<split>` or to `root`; validation images may lie in one folder, with labels alone. Class names come
    from `names`, else from `root/meta.bin` where it exists, else from torchvision for the 1,000 classes of
    the challenge; else a class is called by its wnid.

    Args:
        root: Folder of the data set.
        **kwargs: Sizes, names, loaders and augmentation, see ImageFilesDataModule.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        meta = self.root / "meta.bin"
        if kwargs.get("names"):
            return
        if meta.is_file():
            self.class_names = read_meta(meta, self.classes)
        elif len(self.classes) == len(_NAMES) and (self.classes[0], self.classes[-1]) == _ENDS:
            self.class_names = distinct(_NAMES, self.classes)

    def find_classes(self) -> list[str]:
        """The wnids, the same in both splits."""
        self.has_lists = any((self.root / f"{split}.txt").is_file() for split in ("train", "val"))
        if not self.has_lists:
            return common_classes(self.root, ("train", "val"))
        listed = {split: _Listed(self.root, split) for split in ("train", "val")}
        wnids = listed["train"].wnids
        classes = sorted(set(wnids)) if all(wnids) else [str(i) for i in range(listed["train"].highest + 1)]
        for one in listed.values():
            one.check(classes)
        present = [{classes[label] for label in np.unique(one.files.labels)} for one in listed.values()]
        same_classes(present[0], present[1], ("train.txt", "val.txt"), self.root)
        if len(present[0]) < len(classes):
            empty = next(name for name in classes if name not in present[0])
            raise UserError(
                f"{self.root / 'train.txt'}: expected images for every class, got none for {empty}"
            )
        self._lists = {split: one.files for split, one in listed.items()}
        return classes

    def list_files(self, split: str) -> FileList:
        """Files of a split's class folders, or its list."""
        return self.files("val") if split == "test" else scan(self.root / split, self.classes)


class _Listed:
    """A list file, the wnid of each folder that it names, and its checks."""

    def __init__(self, root: Path, split: str) -> None:
        self.path = root / f"{split}.txt"
        self.listed = read_list(self.path, (root / split, root))
        self.files = self.listed.files
        # Relative to the root of the data, paths begin with the split.
        prefix = "" if self.files.root == root / split else f"{split}/"
        folders = ("" if folder == split else folder.removeprefix(prefix) for folder in self.listed.folders)
        self.wnids = [folder.partition("/")[0] for folder in folders]
        self.highest = int(self.files.labels.max())

    def check(self, classes: list[str]) -> None:
        """Every label is one of the classes, and that of its folder.

        Raises:
            UserError: One is not; with file and line.
        """
        labels = self.files.labels
        position = {name: place for place, name in enumerate(classes)}
        expected = np.array([position.get(wnid, -1) if wnid else -2 for wnid in self.wnids])[
            self.listed.folder_of
        ]
        if (row := _first(labels >= len(classes))) is not None:
            raise self._error(row, f"expected a label from 0 to {len(classes) - 1}, got {labels[row]}")
        if (row := _first(expected == -1)) is not None:
            raise self._error(row, f"expected a class of train.txt, got {self.files.name(row)}")
        if (row := _first((expected >= 0) & (expected != labels))) is not None:
            wnid = self.wnids[self.listed.folder_of[row]]
            raise self._error(row, f"expected label {expected[row]} for {wnid}, got {labels[row]}")

    def _error(self, row: int, complaint: str) -> UserError:
        return UserError(f"{self.path}:{self.listed.lines[row]}: {complaint}")


def _first(is_wrong: NDArray[np.bool_]) -> int | None:
    rows = np.flatnonzero(is_wrong)
    return int(rows[0]) if len(rows) else None
