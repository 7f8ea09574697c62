"""The figures of a run that its end is told by: best and last accuracies, what became of the wrong labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.report import fraction

_LABELS = {
    "train/memorised": "wrong labels memorised",
    "train/clean_fit": "right labels fitted",
    "train/noise_auroc_loss": "noise AUROC, loss of the last epoch",
    "train/noise_auroc_suspects": "noise AUROC, suspects.csv",
    "train/noise_auroc_ratio": "noise AUROC, ratios of EN",
    "train/selection_precision": "selection, precision",
    "train/selection_recall": "selection, recall",
}


@dataclass
class Outcome:
    """Best and last values of an epoch's metrics.

    Attributes:
        best: Highest accuracy so far, by metric.
        last: Accuracy of the last epoch.
        noise: Last value of each metric on the wrong labels.
    """

    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def add(self, noise: dict[str, float], validation: dict[str, float]) -> None:
        """Take in an epoch."""
        self.noise |= noise
        self.last = {name: value for name, value in validation.items() if "top" in name}
        self.best |= {name: max(value, self.best.get(name, 0.0)) for name, value in self.last.items()}

    def rows(self) -> dict[str, str]:
        """What there is, for a table: the best of each accuracy, and the last in brackets."""
        accuracies = {
            f"{name}, best (last)": f"{fraction(self.best[name])} ({fraction(value)})"
            for name, value in self.last.items()
        }
        noise = {told: fraction(self.noise[name]) for name, told in _LABELS.items() if name in self.noise}
        return accuracies | noise

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.last, self.noise = (dict(state[name]) for name in ("best", "last", "noise"))
