"""Images and the masks that belong to them, found by their names."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.errors import UserError, one_line
from tasks.file_list import images_at, walk
from tasks.images import UnreadableImage, read_image
from tasks.preflight import is_first_process
from tasks.segmentation.labels import IGNORE, Labels
from tasks.segmentation.masks import read_mask, same_size
from tasks.segmentation.transforms import Joint

_NAMED = 3  # files that a message names


class Pair(NamedTuple):
    """An image and its mask; `mask` is None for an image that is only to be predicted."""

    name: str
    image: Path
    mask: Path | None


class Layout(NamedTuple):
    """Where the images and masks of one split are: the same names below two folders, but for the endings.

    Files of instance ids may lie beside the masks.
    """

    images: Path
    masks: Path
    image_end: str
    mask_end: str
    instance_end: str = ""

    def mask_of(self, image: Path) -> Path:
        """Where the mask of an image is, or should be."""
        return self._beside(image, self.mask_end)

    def instances_of(self, image: Path) -> Path | None:
        """The file of an image's instance ids; None where there is none."""
        path = self._beside(image, self.instance_end)
        return path if self.instance_end and path.is_file() else None

    def lacking_instances(self, pairs: Sequence[Pair]) -> list[Path]:
        """The files of instance ids that are missing where others are there."""
        lacking = [pair.image for pair in pairs if self.instances_of(pair.image) is None]
        if len(lacking) == len(pairs):
            return []
        return [self._beside(image, self.instance_end) for image in lacking]

    def _beside(self, image: Path, end: str) -> Path:
        return self.masks / (str(image.relative_to(self.images)).removesuffix(self.image_end) + end)

    def find(self) -> tuple[list[Pair], list[Path]]:
        """The pairs in the order of their names, and the images that have no mask.

        Raises:
            UserError: If a folder is missing or there is no image.
        """
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise UserError(f"data.root: expected a folder {folder}, which does not exist")
        names = sorted(name.removesuffix(self.image_end) for name in _ending(self.images, self.image_end))
        if not names:
            raise UserError(f"{self.images}: expected images *{self.image_end}, got none")
        masks = set(_ending(self.masks, self.mask_end))
        pairs = [
            Pair(name, self.images / (name + self.image_end), self.masks / (name + self.mask_end))
            for name in names
        ]
        has_mask = [name + self.mask_end in masks for name in names]
        return (
            [pair for pair, has in zip(pairs, has_mask, strict=True) if has],
            [pair.image for pair, has in zip(pairs, has_mask, strict=True) if not has],
        )

    def pairs(self) -> list[Pair]:
        """The pairs of a whole split.

        Raises:
            UserError: If a folder is missing, there is no image, or an image has no mask.
        """
        pairs, bare = self.find()
        if bare:
            more = ", …" if len(bare) > _NAMED else ""
            raise UserError(
                f"{self.masks}: expected a mask *{self.mask_end} for every image, got none for {len(bare)} "
                f"of {len(pairs) + len(bare)}: {', '.join(map(str, bare[:_NAMED]))}{more}"
            )
        return pairs


def _ending(folder: Path, end: str) -> list[str]:
    return [name for name in walk(folder, (end.lower(),)) if name.endswith(end)]


class PairFiles:
    """(image, mask) pairs of files: bytes (3, H, W) and train ids (H, W).

    Args:
        pairs: The files.
        labels: Classes of the masks.
        augment: Joint augmentation; None for the pixels as they are.
    """

    def __init__(self, pairs: Sequence[Pair], labels: Labels, augment: Joint | None = None) -> None:
        self.pairs, self.labels, self.augment = pairs, labels, augment

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        image, mask = read_pair(self.pairs[index], self.labels)
        return self.augment(image, mask) if self.augment else (image, mask)


def read_pair(pair: Pair, labels: Labels) -> tuple[Tensor, Tensor]:
    """Bytes (3, H, W) and train ids (H, W); all ignored where there is no mask.

    Raises:
        UnreadableImage: If one of the files is missing or holds no whole image.
        BadMask: If the mask has another size, several channels, or unknown ids.
    """
    # A mask is of the pixels as they are stored, whichever way up a camera held them.
    image = read_image(pair.image, upright=pair.mask is None)
    if pair.mask is None:
        return image, torch.full(image.shape[-2:], IGNORE, dtype=torch.uint8)
    mask = read_mask(pair.mask, labels)
    same_size(image, mask, pair.image, pair.mask)
    return image, mask


def images_to_predict(given: Path) -> list[Pair]:
    """An image, or the images of a folder, without masks; unreadable ones are named on stderr and left out.

    Raises:
        UserError: There is none.
    """
    files = images_at(given)
    paths = [files.path(index) for index in range(len(files))]
    with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
        readable = [path for path, reason in zip(paths, pool.map(_reason, paths), strict=True) if not reason]
    if not readable:
        raise UserError(f"--images: expected an image that can be read, got none in {given}")
    names = [path.relative_to(files.root) for path in readable]
    count = Counter(name.with_suffix("") for name in names)
    short = [name if count[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
    if len({*short}) < len(names):  # as of a.bmp, a.png and a.bmp.png
        short = names
    return [Pair(str(name), path, None) for name, path in zip(short, readable, strict=True)]


def _reason(path: Path) -> str:
    """Why an image cannot be read, told; '' for one that can."""
    try:
        read_image(path)
    except UnreadableImage as error:
        if is_first_process():
            print(one_line(f"unreadable, left out: {error}"), file=sys.stderr)
        return error.reason
    return ""
