"""A task's own score of a network under several λ, on the same samples.

Legend: N samples, B blocks of samples, C classes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.data import BaseDataModule

_BLOCKS = 10
"""Blocks of samples from which the error of a mean IoU is estimated."""


class Score(Protocol):
    """What is counted while samples go through a network in several ways.

    Attributes:
        name: What people call the score.
    """

    name: str

    def add(self, way: str, predicted: Any, targets: Any, first: int) -> None:
        """Count predictions of samples, of which the first is the `first`-th of the split."""

    def value(self, way: str) -> float:
        """The score, a fraction; NaN where nothing was labelled."""

    def error(self, way: str, other: str) -> float:
        """Standard error of the difference of the scores of two ways over other samples of the same kind."""


class TopOne:
    """Share of right predictions."""

    name = "top-1"

    def __init__(self) -> None:
        self._hits: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, way: str, predicted: Any, targets: Any, first: int) -> None:
        """Predicted and true classes (N); true ones below 0 are unknown."""
        hits = (predicted == targets)[targets >= 0]
        self._hits.setdefault(way, []).append(hits.cpu().numpy().astype(np.float64))

    def value(self, way: str) -> float:
        """Mean of the hits."""
        hits = self._all(way)
        return float(hits.mean()) if len(hits) else float("nan")

    def error(self, way: str, other: str) -> float:
        """From the differences of the same samples' hits."""
        differences = self._all(way) - self._all(other)
        N = len(differences)
        return float(differences.std(ddof=1) / np.sqrt(N)) if N > 1 else float("nan")

    def _all(self, way: str) -> NDArray[np.float64]:
        return np.concatenate(self._hits.get(way, [np.empty(0)]))


class MeanIoU:
    """Mean IoU by the task's own counting, with a confusion matrix for each block of samples.

    Args:
        data: Makes the task's scores.
    """

    name = "mIoU"

    def __init__(self, data: BaseDataModule) -> None:
        self._data: Any = data
        self._scores: dict[str, list[Any]] = {}

    def add(self, way: str, predicted: Any, targets: Any, first: int) -> None:
        """Predicted classes and train ids (N, H, W)."""
        if way not in self._scores:
            self._scores[way] = [self._data.scores().to(predicted.device) for _ in range(_BLOCKS)]
        for place, (one, mask) in enumerate(zip(predicted, targets, strict=True), first):
            self._scores[way][place % _BLOCKS].update(one.to(mask.device), mask)

    def value(self, way: str) -> float:
        """Of all blocks together."""
        return _mean_iou(self._confusions(way).sum(0))

    def error(self, way: str, other: str) -> float:
        """By the jackknife: what leaving a block out changes."""
        pair = [self._confusions(name) for name in (way, other)]
        used = np.flatnonzero(pair[0].sum((1, 2)))
        B = len(used)
        if B < 2:
            return float("nan")
        without = [
            _mean_iou(pair[0].sum(0) - pair[0][block]) - _mean_iou(pair[1].sum(0) - pair[1][block])
            for block in used
        ]
        return float(np.sqrt((B - 1) / B * np.square(np.array(without) - np.mean(without)).sum()))

    def _confusions(self, way: str) -> NDArray[np.int64]:
        return np.stack([score.confusion.cpu().numpy() for score in self._scores[way]])


def _mean_iou(confusion: NDArray[np.int64]) -> float:
    """Over the classes that are in the masks or predicted."""
    hits = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - hits
    return float((hits[either > 0] / either[either > 0]).mean()) if either.any() else float("nan")
