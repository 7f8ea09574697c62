"""What there is to check in a data set: its files by split and class, and what is wrong with its layout.

A data set gets an entry in TREES: where the function from its root to a Tree is. It reports what is missing
and goes on, where the data modules stop at the first fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import UserError
from tasks.file_list import FileList

if TYPE_CHECKING:
    from torch import Tensor

Fault = Callable[[str, "Tensor"], str]


@dataclass(frozen=True)
class Part:
    """One split.

    Attributes:
        split: Its name.
        files: Its images, with the class of each.
        classes: Name of each class.
        fault: What is wrong with what belongs to an image, such as its mask, from its path and its pixels
            (3, H, W); '' for nothing. It travels to other processes. None where nothing belongs to an image.
    """

    split: str
    files: FileList
    classes: list[str]
    fault: Fault | None = None

    def counts(self) -> dict[str, int]:
        """Number of files of each class."""
        counts = np.bincount(self.files.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))


@dataclass
class Tree:
    """A data set.

    Attributes:
        parts: Its splits.
        problems: What is wrong with its layout, a line each.
    """

    parts: list[Part] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(part.files) for part in self.parts)


def imagenet(root: Path) -> Tree:
    """`root/{train,val}/<wnid>/*.JPEG`, or what `root/{train,val}.txt` list."""
    if any((root / f"{split}.txt").is_file() for split in ("train", "val")):
        return _lists(root)
    return _folders(root, ["train", "val"])


def folder(root: Path) -> Tree:
    """`root/{train,val,test}/<class>/*`, or `root/<class>/*` without splits."""
    present = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    return _folders(root, ["train", "val", *(["test"] if "test" in present else [])] if present else ["."])


TREES = {
    "imagenet": "tasks.check_data.trees:imagenet",
    "folder": "tasks.check_data.trees:folder",
    "cityscapes": "tasks.segmentation.check:cityscapes",
    "ade20k": "tasks.segmentation.check:ade20k",
    "webvision": "tasks.noisy_labels.webvision:tree",
}
"""Name of each data set and where its function is."""


def tree_of(data: str, root: Path) -> Tree:
    """The tree of a data set by its name."""
    room, _, name = TREES[data].partition(":")
    tree: Tree = getattr(import_module(room), name)(root)
    return tree


def _lists(root: Path) -> Tree:
    """The files of list files, which are checked as the data module checks them."""
    from tasks.classification.imagenet import ImageNetDataModule

    try:
        data = ImageNetDataModule(str(root))
    except UserError as error:
        return Tree(problems=[str(error)])
    return Tree([Part(split, data.files(split), data.classes) for split in ("train", "val")])


def _folders(root: Path, splits: list[str]) -> Tree:
    """The files of class folders in the folder of each split; "." is the root itself."""
    from tasks.classification.folders import class_folders, list_classes, same_classes

    tree = Tree()
    for split in splits:
        try:
            classes = class_folders(root / split)
        except UserError as error:
            tree.problems.append(str(error))
            continue
        files = list_classes(root / split, classes)
        tree.parts.append(Part("all" if split == "." else split, files, classes))
    for left, right in pairwise(tree.parts):
        try:
            same_classes(set(left.classes), set(right.classes), (left.split, right.split), root)
        except UserError as error:
            tree.problems.append(str(error))
    for part in tree.parts:
        empty = [name for name, count in part.counts().items() if not count]
        tree.problems += [f"{part.files.root / name}: expected images, got none" for name in empty]
    return tree
