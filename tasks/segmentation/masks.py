"""Files whose pixels are numbers: label ids and instance ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import UserError
from tasks.images import UnreadableImage, open_image, read_bytes, reading
from tasks.segmentation.labels import Labels

_NUMBERS = ("L", "P", "I", "I;16", "I;16B")


class BadMask(UserError):
    """A mask that is readable but wrong: another size, another number of channels, unknown ids."""


def read_ids(path: Path) -> NDArray[np.int32]:
    """Numbers (H, W) of an image file of one channel; of a palette image, the indices.

    Raises:
        UnreadableImage: If the file is missing or holds no whole image.
        BadMask: If it has several channels.
    """
    image = open_image(read_bytes(path), path)
    if image.mode not in _NUMBERS:
        raise BadMask(f"{path}: expected one channel of ids, got an image of mode {image.mode}")
    with reading(path):
        return np.asarray(image).astype(np.int32)


def read_mask(path: Path, labels: Labels) -> Tensor:
    """Train ids (H, W) of a file of label ids, as uint8.

    Raises:
        UnreadableImage: If the file is missing or holds no whole image.
        BadMask: If it has several channels, or a number that the data set does not have.
    """
    ids = read_ids(path)
    table = labels.train_ids()
    known = (ids >= 0) & (ids < len(table))
    mask = np.where(known, table[np.where(known, ids, 0)], -1)
    if mask.min(initial=0) < 0:
        wrong = np.unique(ids[mask < 0])
        more = ", …" if len(wrong) > 5 else ""
        raise BadMask(
            f"{path}: expected {_ranges(np.flatnonzero(table >= 0))} as ids, got "
            f"{', '.join(map(str, wrong[:5]))}{more} at {np.count_nonzero(mask < 0)} of {mask.size} pixels"
        )
    return torch.from_numpy(mask.astype(np.uint8))


def read_instances(path: Path, size: torch.Size, image_path: Path) -> Tensor:
    """Instance ids (H, W) of the file that belongs to an image of `size`.

    Raises:
        BadMask: If the file holds no whole image, has several channels, or another size.
    """
    try:
        ids = torch.from_numpy(read_ids(path))
    except UnreadableImage as error:
        raise BadMask(f"{path}: expected an image of instance ids, {error.reason}") from error
    if ids.shape != size:
        raise _of_another_size(path, ids.shape, image_path, size)
    return ids


def same_size(image: Tensor, mask: Tensor, image_path: Path, mask_path: Path) -> None:
    """Check that an image (3, H, W) and its mask (H, W) cover each other.

    Raises:
        BadMask: If not.
    """
    if image.shape[-2:] != mask.shape:
        raise _of_another_size(mask_path, mask.shape, image_path, image.shape)


def _of_another_size(path: Path, size: torch.Size, image_path: Path, expected: torch.Size) -> BadMask:
    return BadMask(f"{path}: expected {_size(expected)} (width × height) as {image_path}, got {_size(size)}")


def _size(shape: torch.Size) -> str:
    height, width = shape[-2:]
    return f"{width} × {height}"


def _ranges(numbers: NDArray[np.int64]) -> str:
    """Sorted numbers as "0–33, 255"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
