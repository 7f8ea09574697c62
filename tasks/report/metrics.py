"""What `metrics.csv` holds, as curves over epochs."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

TEST = "test/"


@dataclass
class Curve:
    """One metric: values at positions counted in epochs."""

    epochs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def thinned(self, most: int = 400) -> Curve:
        """Means of runs of neighbours where there are more than `most` points."""
        length = -(-len(self.values) // most)
        if length <= 1:
            return self
        starts = range(0, len(self.values), length)
        return Curve(*([_mean(row[i : i + length]) for i in starts] for row in (self.epochs, self.values)))


def read_metrics(path: Path) -> dict[str, Curve]:
    """The curves of a run by metric; none where there is no file.

    An optimiser step is placed at epoch (step + 1) / steps an epoch. The steps an epoch are the largest
    (step + 1) / (epoch + 1) of all rows: equal at the end of an epoch, smaller within one.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        # A process killed while it wrote leaves a last row without its later columns.
        rows = [row for row in csv.DictReader(file) if row.get("step") and row.get("epoch")]
    trained = [row for row in rows if any(row[name] for name in row if _is_of_training(name))]
    per_epoch = max((_at(row, "step") / _at(row, "epoch") for row in trained), default=1.0)
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                curve = curves.setdefault(name, Curve())
                curve.epochs.append(_at(row, "step") / per_epoch)
                curve.values.append(float(value))
    return curves


def _is_of_training(name: str) -> bool:
    return name not in ("step", "epoch") and not name.startswith(TEST)


def _at(row: dict[str, str], name: str) -> float:
    return float(row[name]) + 1


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
