"""Images in a folder for each class, and what every data set of image files shares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS

from tasks.classification.data import ImageDataModule, ImageFiles
from tasks.classification.names import read_names
from tasks.classification.transforms import (
    Interpolation,
    evaluation_view,
    read_crop_flip,
)
from tasks.data import Examples
from tasks.errors import UserError
from tasks.file_list import FileList, walk
from tasks.images import read_image
from tasks.normalize import Colour
from tasks.splits import stratified_split

_THREADS = 32  # listing folders waits for the disk


class ImageFilesDataModule(ImageDataModule):
    """Image files of any size: random crops for training, the centre for evaluation.

    A subclass names the classes in `find_classes()` and lists the files of a split in `list_files(split)`.

    Args:
        root: Folder of the data set.
        train_size: Height and width of the training images.
        eval_resize: Length of the shorter side in evaluation, before the centre is taken.
        eval_size: Height and width of that centre.
        interpolation: How images are resized.
        names: File of class names: a line `<class folder> <name>, <other names>` for each class in any
            order, or a line `<name>` for each in the order of the classes.
        **kwargs: Loaders and augmentation, see ImageDataModule.
    """

    mean: ClassVar[Colour] = (0.485, 0.456, 0.406)
    std: ClassVar[Colour] = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str,
        train_size: int = 224,
        eval_resize: int = 256,
        eval_size: int = 224,
        interpolation: Interpolation = "bilinear",
        names: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if train_size < 1:
            raise ValueError(f"data.train_size: expected a positive number, got {train_size}")
        if not 1 <= eval_size <= eval_resize:
            raise ValueError(
                f"data.eval_size: expected a number from 1 to eval_resize ({eval_resize}), got {eval_size}"
            )
        if not root:
            raise UserError("data.root: expected a folder, got nothing")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"data.root: expected a folder, got {root}, which {_is_what(self.root)}")
        self.train_size, self.eval_resize, self.eval_size = train_size, eval_resize, eval_size
        self.interpolation: Interpolation = interpolation
        self._lists: dict[str, FileList] = {}
        self.classes = self.find_classes()
        self.class_names = read_names(Path(names).expanduser(), self.classes) if names else self.classes

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self.classes)

    @abstractmethod
    def find_classes(self) -> list[str]:
        """Names of the class folders in the order of the labels; called once, when the module is built."""

    @abstractmethod
    def list_files(self, split: str) -> FileList:
        """Files and labels of "train", "val" or "test"."""

    def setup(self, stage: str) -> None:
        """List the files that a stage needs."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for split in splits[stage]:
            self.labels(split)

    def files(self, split: str) -> FileList:
        """Files and labels of "train", "val" or "test", listed once."""
        if split not in self._lists:
            self._lists[split] = self.list_files(split)
        return self._lists[split]

    def view(self, split: str, training: bool) -> Examples:
        """Images of one split."""
        if not training:
            return ImageFiles(self.files(split), [read_image, *self.image_steps()])
        cropped = read_crop_flip(self.train_size, self.interpolation)
        return ImageFiles(self.files(split), [*cropped, *self.augmentations()])

    def labels_of(self, split: str) -> NDArray[np.int64]:
        """Classes of one split."""
        return self.files(split).labels

    def name_of(self, split: str, index: int) -> str:
        """Path of an image relative to the folder of its split."""
        return self.files(split).name(index)

    def image_steps(self) -> list[Callable[[Any], Any]]:
        """The shorter side to `eval_resize`, the central square of `eval_size`."""
        return evaluation_view(self.eval_resize, self.eval_size, self.interpolation)


class ImageFolderDataModule(ImageFilesDataModule):
    """`root/{train,val,test}/<class>/*`, or `root/<class>/*` without splits.

    Where there is no test folder, the validation images are the test images. Without splits, a share of each
    class is set apart for validation and test.

    Args:
        root: Folder of the data set.
        val_share: Share of the images that is set apart where there are no splits.
        split_seed: Seed of that choice, apart from the seed of the run.
        **kwargs: Sizes, names, loaders and augmentation, see ImageFilesDataModule.
    """

    def __init__(self, root: str, val_share: float = 0.1, split_seed: int = 0, **kwargs: Any) -> None:
        if not 0 < val_share < 1:
            raise ValueError(f"data.val_share: expected a number in (0, 1), got {val_share}")
        self.val_share, self.split_seed = val_share, split_seed
        super().__init__(root, **kwargs)

    def find_classes(self) -> list[str]:
        """The class folders; where there are splits, the same in each."""
        self.splits = [split for split in ("train", "val", "test") if (self.root / split).is_dir()]
        if not self.splits:
            return class_folders(self.root)
        return common_classes(self.root, ("train", "val", *self.splits[2:]))

    def list_files(self, split: str) -> FileList:
        """Files of a split's folder, or its share of all files."""
        if self.splits:
            return scan(self.root / (split if split in self.splits else "val"), self.classes)
        files = scan(self.root, self.classes)
        shares = {"train": 1 - self.val_share, "val": self.val_share}
        rows = stratified_split(files.labels, shares, self.split_seed)[split if split == "train" else "val"]
        if not len(rows):
            raise UserError(
                f"data.val_share: {self.val_share:g} of each class in {self.root} leaves no image for {split}"
            )
        return files.select(rows)


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in a folder, sorted.

    Raises:
        UserError: There is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise UserError(f"data.root: expected a folder {folder}, which {_is_what(folder)}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise UserError(f"data.root: expected a folder for each class in {folder}, got none")
    return names


def common_classes(root: Path, splits: Sequence[str]) -> list[str]:
    """The class folders that the folders of all splits have.

    Raises:
        UserError: A split is missing, or its classes are not those of the first.
    """
    classes = class_folders(root / splits[0])
    for split in splits[1:]:
        same_classes(set(classes), set(class_folders(root / split)), (splits[0], split), root)
    return classes


def same_classes(left: set[str], right: set[str], splits: tuple[str, str], root: Path) -> None:
    """Check that two splits have the same classes.

    Raises:
        UserError: They differ; the line names the first few on each side.
    """
    sides = zip(splits, (left - right, right - left), strict=True)
    told = [f"{_few(sorted(only))} only in {split}" for split, only in sides if only]
    if told:
        raise UserError(f"data.root: the classes of {root} differ between its splits: {'; '.join(told)}")


def scan(folder: Path, classes: Sequence[str]) -> FileList:
    """What `list_classes` finds, with an image of every class.

    Raises:
        UserError: A class has no image.
    """
    files = list_classes(folder, classes)
    counts = np.bincount(files.labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise UserError(f"data.root: expected images for every class of {folder}, got none for {_few(empty)}")
    return files


def list_classes(folder: Path, classes: Sequence[str]) -> FileList:
    """Files of every class below a folder; the label is the position of the class."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: walk(folder / name, IMG_EXTENSIONS), classes)
        counts: list[int] = []

        def names() -> Any:
            for name, files in zip(classes, found, strict=True):
                counts.append(len(files))
                yield from (f"{name}/{file}" for file in files)

        listed = FileList.of(folder, names(), np.empty(0, np.int64))
    labels = np.repeat(np.arange(len(classes)), counts)
    return FileList(folder, listed.packed, listed.ends, labels)


def _few(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _is_what(path: Path) -> str:
    return "is a file" if path.is_file() else "does not exist"
