"""Classes of a data set: names, colours, and the numbers that its files hold for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
"""Train id of pixels that count neither in the loss nor in the score."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Labels:
    """The classes of one data set.

    Attributes:
        names: Name of each class.
        palette: Colour of each class.
        raw_ids: Number of each class in the data set's files.
        ignored_ids: Numbers there that stand for no class.
    """

    names: tuple[str, ...]
    palette: tuple[Rgb, ...]
    raw_ids: tuple[int, ...]
    ignored_ids: frozenset[int]

    def __len__(self) -> int:
        return len(self.names)

    def train_ids(self) -> NDArray[np.int16]:
        """(256,) train id of each number in a file: IGNORE for no class, −1 where there is no such number."""
        table = np.full(256, -1, np.int16)
        table[list(self.ignored_ids)] = IGNORE
        table[list(self.raw_ids)] = np.arange(len(self))
        return table

    def colours(self) -> NDArray[np.uint8]:
        """(256, 3) colour of each train id, black for no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.palette
        return table

    def files_ids(self) -> NDArray[np.uint8]:
        """(256,) number in a file of each train id; 0 for no class."""
        table = np.zeros(256, np.uint8)
        table[: len(self)] = self.raw_ids
        return table


_CITYSCAPES: dict[str, tuple[int, Rgb]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_CITYSCAPES_RAW = tuple(number for number, _ in _CITYSCAPES.values())

CITYSCAPES = Labels(
    names=tuple(_CITYSCAPES),
    palette=tuple(colour for _, colour in _CITYSCAPES.values()),
    raw_ids=_CITYSCAPES_RAW,
    # 255 is −1, the licence plate, in a file of bytes.
    ignored_ids=frozenset({*range(34), 255} - {*_CITYSCAPES_RAW}),
)
"""Names, ids and colours of https://github.com/mcordts/cityscapesScripts (`helpers/labels.py`)."""


def ade20k(names: tuple[str, ...] | None = None) -> Labels:
    """The 150 classes of ADE20K scene parsing: 1..150 in the files, 0 for everything else.

    Args:
        names: Their names; numbers without.
    """
    return Labels(
        names=names or tuple(f"class {number}" for number in range(1, 151)),
        palette=distinct_colours(150),
        raw_ids=tuple(range(1, 151)),
        ignored_ids=frozenset({0}),
    )


def distinct_colours(count: int) -> tuple[Rgb, ...]:
    """Up to 200 colours, the same every time: grey, then always the farthest from those before."""
    levels = np.arange(0, 256, 51)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    grid = grid[grid.sum(axis=1) > 153]  # black is for no class
    chosen = [int(np.flatnonzero((grid == 102).all(axis=1))[0])]
    nearest = np.full(len(grid), np.inf)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, np.linalg.norm(grid - grid[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[chosen])


DIGITS = Labels(
    names=("background", *map(str, range(10))),
    palette=distinct_colours(11),
    raw_ids=tuple(range(11)),
    ignored_ids=frozenset({IGNORE}),
)
"""The embedded scenes: background and ten digits."""
