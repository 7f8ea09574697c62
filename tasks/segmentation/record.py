"""What an evaluation keeps for the report: confusion matrix, IoU of each class, a few predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tasks.ranks import gathered

PICTURES = 6
"""Images of a split whose predictions are kept."""


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        split: "val" or "test".
        confusion: (classes, classes) number of pixels by true and by predicted class.
        iou: (classes) IoU, NaN for a class that is nowhere.
        predicted: Classes (H, W) of some images by their index.
    """

    split: str
    confusion: NDArray[np.int64]
    iou: NDArray[np.float64]
    predicted: dict[int, NDArray[np.uint8]]


class EvaluationRecord:
    """Collects the Outcome of an evaluation; `finish` is called in all processes."""

    outcome: Outcome | None = None

    def __init__(self) -> None:
        self.split, self.chosen = "", frozenset[int]()
        self.predicted: dict[int, NDArray[np.uint8]] = {}

    def start(self, split: str, size: int) -> None:
        """Forget the evaluation before, and choose images of the `size` ones, evenly spaced."""
        self.split, self.predicted = split, {}
        places = np.linspace(0, size - 1, min(size, PICTURES)).round()
        self.chosen = frozenset(int(place) for place in places)

    def update(self, index: int, predicted: Tensor) -> None:
        """Take in the classes (H, W) of one image."""
        if index in self.chosen:
            self.predicted[index] = predicted.cpu().numpy().astype(np.uint8)

    def finish(self, scores: Mapping[str, Tensor]) -> None:
        """Set `outcome` to what was found in all processes."""
        self.outcome = Outcome(
            self.split,
            scores["confusion"].cpu().numpy(),
            scores["iou"].cpu().numpy(),
            dict(sorted(gathered(self.predicted.items()))),
        )
