"""Parts of a data set that has none of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.int64], parts: dict[str, float], seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Divide the rows into named parts, each class in the same proportions, the same way for a seed."""
    generator = np.random.default_rng(seed)
    bounds = np.cumsum(list(parts.values()))[:-1]
    split: dict[str, list[NDArray[np.int64]]] = {name: [] for name in parts}
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        pieces = np.split(rows, (bounds * len(rows)).round().astype(int))
        for name, piece in zip(parts, pieces, strict=True):
            split[name].append(piece)
    return {name: np.sort(np.concatenate(pieces)) for name, pieces in split.items()}


def stratified_order(labels: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """A permutation of the rows, the same for a seed, of which every beginning has each class in its share.

    Of the first n rows, a class with the share p of all rows has n·p, to within the number of classes; the
    first of each class come first.
    """
    generator = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        place[rows] = np.arange(len(rows)) / len(rows)
    return np.lexsort((labels, place))
