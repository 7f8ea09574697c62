"""WebVision 1.0: 2.4 million images from the web, labelled by the query that found them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from tasks.classification.folders import ImageFilesDataModule, scan
from tasks.errors import UserError
from tasks.file_list import FileList
from tasks.noisy_labels import SECOND_SET
from tasks.noisy_labels.data import NoisyLabelsDataModule
from tasks.noisy_labels.filelists import Listing, joined, read_listing, read_synsets
from tasks.preflight import is_first_process

if TYPE_CHECKING:
    from tasks.check_data.trees import Part, Tree

Source = Literal["google", "flickr", "both"]
_MINI = 50
_VAL_FOLDERS = ("val_images_256", "val_images")
_SOURCES = ("google", "flickr")


class WebVisionDataModule(NoisyLabelsDataModule, ImageFilesDataModule):
    """`root/{google,flickr}/q0001/*.jpg`, `root/val_images_256/*.jpg` and the lists in `root/info`.

    WebVision's validation split is also its test split. Where `imagenet_root` is given, ImageNet's validation
    images of the same classes, found by the wnids of `info/synsets.txt` and never by position, are a second
    one. Files that a list names and that are not there, and repeated lines, are left out and counted.

    Args:
        root: Folder of the data set.
        source: Origin of the training images.
        protocol: "mini" takes the first 50 classes (DivideMix and ELR, with Google's images), "full" all.
        train_prefix: Folder of the training images in place of `google` or `flickr`; `{source}` stands for
            these, as in `{source}_resized_256`.
        val_prefix: Folder of the validation images; by default val_images_256, else val_images.
        imagenet_root: Folder of ImageNet, of which `val/<wnid>/*.JPEG` is used.
        max_missing: Share of a list's files that may be missing.
        **kwargs: Sizes, loaders and augmentation, see ImageFilesDataModule.
    """

    def __init__(
        self,
        root: str,
        source: Source = "google",
        protocol: Literal["mini", "full"] = "mini",
        train_prefix: str = "{source}",
        val_prefix: str | None = None,
        imagenet_root: str | None = None,
        max_missing: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if not 0 <= max_missing < 1:
            raise ValueError(f"data.max_missing: expected a number in [0, 1), got {max_missing}")
        for name, prefix in (("train_prefix", train_prefix), ("val_prefix", val_prefix or ".")):
            if prefix.startswith("/") or ".." in prefix.split("/"):
                raise UserError(f"data.{name}: expected a folder below the data's root, got {prefix!r}")
        self.source, self.protocol, self.max_missing = source, protocol, max_missing
        self.train_prefix, self.val_prefix = train_prefix, val_prefix
        self.imagenet_root = Path(imagenet_root).expanduser() if imagenet_root else None
        super().__init__(root=root, **kwargs)
        self.class_names = self.class_names if kwargs.get("names") else self._synset_names

    def find_classes(self) -> list[str]:
        """The wnids of synsets.txt, in its order."""
        wnids, names = read_synsets(self.root / "info" / "synsets.txt")
        self._all_classes = len(wnids)
        count = min(_MINI, len(wnids)) if self.protocol == "mini" else len(wnids)
        self._synset_names = names[:count]
        if self.imagenet_root and not (self.imagenet_root / "val").is_dir():
            raise UserError(f"data.imagenet_root: expected a folder {self.imagenet_root / 'val'}, got none")
        return wnids[:count]

    def list_files(self, split: str) -> FileList:
        """The files of the lists that are there and belong to the classes."""
        if split == SECOND_SET and self.imagenet_root:
            return scan(self.imagenet_root / "val", self.classes)
        if split == "test":
            return self.files("val")
        return joined([self._kept(listing) for listing in self.listings(split)])

    def listings(self, split: str) -> list[Listing]:
        """What the lists of "train" or "val" name, of all classes."""
        if split == "val":
            folders = [self.val_prefix] if self.val_prefix else list(_VAL_FOLDERS)
            base = next((self.root / name for name in folders if (self.root / name).is_dir()), None)
            if base is None:
                raise UserError(
                    f"data.val_prefix: expected a folder {' or '.join(folders)} in {self.root}, got none"
                )
            return [read_listing(self.root / "info" / "val_filelist.txt", base, self._all_classes)]
        return [self._training(one) for one in _SOURCES if self.source in (one, "both")]

    def _training(self, source: str) -> Listing:
        listed, prefix = f"{source}/", self.train_prefix.replace("{source}", source)
        path = self.root / "info" / f"train_filelist_{source}.txt"
        if prefix == source:
            return read_listing(path, self.root, self._all_classes)
        return read_listing(
            path,
            self.root,
            self._all_classes,
            lambda name: f"{prefix}/{name[len(listed) :]}" if name.startswith(listed) else name,
        )

    def _kept(self, listing: Listing) -> FileList:
        if listing.missing > self.max_missing * listing.total:
            raise UserError(
                f"{listing.path}: {listing.missing:,} of {listing.total:,} files are missing, more than "
                f"data.max_missing ({self.max_missing:g}) allows; the first: {listing.example}"
            )
        if listing.faults and is_first_process():
            print(listing.faults, flush=True)
        files = listing.files
        rows = np.flatnonzero(files.labels < self.num_classes)
        if not len(rows):
            raise UserError(
                f"{listing.path}: expected files of the first {self.num_classes} classes, got none"
            )
        return files if len(rows) == len(files) else files.select(rows)

    # --- ImageNet's images as a second validation and test set

    def val_dataloader(self) -> Any:
        """WebVision's validation images, then ImageNet's."""
        return self._with_imagenet(super().val_dataloader())

    def test_dataloader(self) -> Any:
        """The same."""
        return self._with_imagenet(super().test_dataloader())

    def _with_imagenet(self, first: DataLoader[Any]) -> Any:
        return [first, self._loader(SECOND_SET)] if self.imagenet_root else first


def tree(root: Path) -> Tree:
    """What `check-data` looks at: the images of each list that is there, resized or not."""
    from tasks.check_data.trees import Part, Tree

    found = Tree()
    for source in _SOURCES:
        if (root / "info" / f"train_filelist_{source}.txt").is_file():
            resized = not (root / source).is_dir() and (root / f"{source}_resized_256").is_dir()
            prefix = "{source}_resized_256" if resized else "{source}"
            _add(found, root, source, {"source": source, "train_prefix": prefix}, Part)
    if not found.parts and not found.problems:
        found.problems.append(f"{root / 'info'}: expected train_filelist_google.txt or _flickr.txt, got none")
    _add(found, root, "val", {}, Part)
    return found


def _add(found: Tree, root: Path, split: str, options: dict[str, Any], part: type[Part]) -> None:
    try:
        data = WebVisionDataModule(str(root), protocol="full", **options)
        (listing,) = data.listings("val" if split == "val" else "train")
    except UserError as error:
        found.problems.append(str(error))
        return
    found.problems += [listing.faults] if listing.faults else []
    found.parts.append(part(split, listing.files, data.classes))
