"""What an evaluation keeps for the report: the confusion matrix and the most confident mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix


class Mistake(NamedTuple):
    """A wrong prediction."""

    example: int
    predicted: int
    true: int
    probability: float


class ConfidentMistakes(Metric):
    """The `k` wrong predictions of highest probability, and the `per_class` ones of every true class.

    Both are exact on any number of processes: what is best in the union is best where it was seen. Of equal
    probabilities the lower index comes first. Nothing is stored in checkpoints.

    Args:
        num_classes: Number of classes.
        k: Mistakes kept of all.
        per_class: Mistakes kept of each true class.
    """

    full_state_update = False
    probability: Tensor
    rows: Tensor

    def __init__(self, num_classes: int, k: int = 12, per_class: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k, self.per_class = k, per_class
        # States of one size, whatever was seen, so that they are gathered as they are; −1 is an empty place.
        self.size = k + per_class * num_classes
        self.add_state("probability", torch.full((self.size,), -1.0), dist_reduce_fx=None)
        self.add_state("rows", torch.full((self.size, 3), -1), dist_reduce_fx=None)

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Take in a batch: logits (N, classes), labels (N) and indices (N) of the examples."""
        probability, predicted = torch.softmax(logits.float(), dim=1).nan_to_num(0.0).max(dim=1)
        rows = torch.stack([indices.to(predicted), predicted, labels], dim=1)
        # Right predictions become empty places: leaving them out would wait for the GPU.
        probability = probability.where(predicted != labels, -1.0)
        self.probability, self.rows = self._kept(
            torch.cat([self.probability, probability]), torch.cat([self.rows, rows])
        )

    def compute(self) -> tuple[Tensor, Tensor]:
        """Probabilities, falling, and rows (index, predicted, true) of the mistakes; −1 in empty places.

        With the empty places, as torchmetrics makes a scalar of a result with one element.
        """
        # Gathered from several processes, the states have an axis in front.
        return self._kept(self.probability.flatten(), self.rows.reshape(-1, 3))

    def _kept(self, probability: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        order = rows[:, 0].argsort(stable=True)
        order = order[probability[order].argsort(descending=True, stable=True)]
        probability, rows = probability[order], rows[order]
        place = torch.arange(len(rows), device=rows.device)
        keep = (place < self.k) | (_rank_within(rows[:, 2].where(probability >= 0, -1)) < self.per_class)
        probability = probability.where(keep, -1.0)
        order = probability.argsort(descending=True, stable=True)[: self.size]
        return probability[order], rows[order]


def _rank_within(groups: Tensor) -> Tensor:
    """How many elements of the same group come before each."""
    order = groups.argsort(stable=True)
    sorted_groups = groups[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(
        sorted_groups, sorted_groups
    )
    return rank


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        split: "val" or "test".
        confusion: (classes, classes) number of images by true and by predicted class.
        mistakes: The `k` most confident ones first, then those kept for their classes, each by falling
            probability.
        k: See ConfidentMistakes.
    """

    split: str
    confusion: NDArray[np.int64]
    mistakes: list[Mistake]
    k: int

    @property
    def totals(self) -> NDArray[np.int64]:
        """(classes) number of images of each class."""
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(classes) share of each class that was recognised; NaN for a class without images."""
        right = self.confusion.diagonal().astype(np.float64)
        return np.where(self.totals > 0, right / np.maximum(self.totals, 1), np.nan)


class EvaluationRecord(nn.Module):
    """Collects the Outcome of an evaluation; `finish` is called in all processes.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The metrics beside it check the labels already.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.mistakes = ConfidentMistakes(num_classes)
        self.split, self.outcome = "", None

    outcome: Outcome | None

    def start(self, split: str) -> None:
        """Forget the evaluation before."""
        self.split = split
        self.confusion.reset()
        self.mistakes.reset()

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Take in a batch: logits (N, classes), labels (N) and indices (N) of the examples."""
        self.confusion.update(logits.argmax(dim=1), labels)
        self.mistakes.update(logits, labels, indices)

    def finish(self) -> None:
        """Set `outcome` to what was found in all processes."""
        probability, rows = self.mistakes.compute()
        found = zip(rows.tolist(), probability.tolist(), strict=True)
        mistakes = [
            Mistake(example, predicted, true, value)
            for (example, predicted, true), value in found
            if value >= 0
        ]
        self.outcome = Outcome(self.split, self.confusion.compute().cpu().numpy(), mistakes, self.mistakes.k)
