"""Tables of a run, epoch by epoch: the mixture of every layer, that of every class, the layers that die.

A process that is killed leaves all rows of a write or, on a full disk, a row cut short, which is dropped.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.ratios.dying import Dying
from tasks.ratios.survey import Array, LayerRatios
from tasks.tables import write_table

RATIOS, BY_CLASS, DYING = "ratios.csv", "ratios_by_class.csv", "dying_layers.csv"
COLUMNS = (
    "epoch", "step", "split", "layer", "kind", "mixture", "normalizer",
    "samples", "mean", "std", "largest", "entropy", "spread", "between",
)  # fmt: skip
CLASS_COLUMNS = ("epoch", "step", "layer", "normalizer", "class", "samples", "mean")


class Epoch(NamedTuple):
    """The mixtures of all layers at one time."""

    epoch: int
    step: int
    split: str
    layers: list[LayerRatios]


def append_ratios(folder: Path, when: Epoch) -> None:
    """Append a row for each layer and normalizer to `ratios.csv`, in one write."""
    rows = []
    for layer in when.layers:
        for place, normalizer in enumerate(layer.normalizers):
            values = (layer.mean[place], layer.std[place], layer.largest[place])
            numbers = (*values, layer.entropy, layer.spread, layer.between)
            names = (layer.layer, layer.kind, layer.mixture, normalizer, layer.samples)
            rows.append([*when[:3], *names, *map(_number, numbers)])
    _append(folder / RATIOS, COLUMNS, rows)


def append_by_class(folder: Path, when: Epoch, names: Sequence[str]) -> None:
    """Append mean λ by layer, normalizer and class to `ratios_by_class.csv`, in one write."""
    _append(folder / BY_CLASS, CLASS_COLUMNS, _class_rows(when, names))


def append_dying(folder: Path, dying: Sequence[Dying]) -> None:
    """Append layers that have begun to die to `dying_layers.csv`, in one write."""
    rows = ((*one[:3], _number(one.before), _number(one.after)) for one in dying)
    _append(folder / DYING, Dying._fields, rows)


def read_dying(folder: Path) -> list[Dying]:
    """The layers that have begun to die, in the order in which they did."""
    return [
        Dying(int(row["epoch"]), int(row["step"]), row["layer"], float(row["before"]), float(row["after"]))
        for row in _rows(folder / DYING)
    ]


def trim_tables(folder: Path, step: int) -> None:
    """Drop all rows from optimiser step `step` on, which were written after the checkpoint of that step."""
    for name, columns in ((RATIOS, COLUMNS), (BY_CLASS, CLASS_COLUMNS), (DYING, Dying._fields)):
        path = folder / name
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            is_ours = next(csv.reader(file), None) == [*columns]
        if is_ours:
            # Row by row: a thousand classes make millions.
            kept = (row for row in _rows(path) if int(row["step"]) < step)
            write_table(path, columns, ([row[column] for column in columns] for row in kept))
        else:  # of an earlier version, or cut within its first line
            path.unlink()


def read_ratios(folder: Path) -> list[Epoch]:
    """What `ratios.csv` of a run holds, in its order; nothing where there is no file."""
    return [
        Epoch(int(epoch), int(step), split, [_layer(list(of_layer)) for _, of_layer in _by_layer(found)])
        for (epoch, step, split), found in groupby(
            _rows(folder / RATIOS), lambda row: (row["epoch"], row["step"], row["split"])
        )
    ]


def _class_rows(when: Epoch, names: Sequence[str]) -> Iterator[tuple[object, ...]]:
    for layer in when.layers:
        if layer.class_mean is None or layer.class_samples is None:
            continue
        for label in np.flatnonzero(layer.class_samples).tolist():
            for normalizer, mean in zip(layer.normalizers, layer.class_mean[label], strict=True):
                samples = int(layer.class_samples[label])
                yield *when[:2], layer.layer, normalizer, names[label], samples, _number(mean)


@dataclass(frozen=True)
class ClassRatios:
    """Mean λ by class over epochs.

    Attributes:
        epochs: The E epochs, from 0.
        columns: The P pairs of layer and normalizer.
        classes: Names of the C classes that have samples.
        means: (E, P, C) means; NaN where there is none.
    """

    epochs: list[int]
    columns: list[tuple[str, str]]
    classes: list[str]
    means: Array


def read_by_class(folder: Path) -> ClassRatios | None:
    """What `ratios_by_class.csv` of a run holds; None where there is none."""
    columns: dict[tuple[str, str], int] = {}
    classes: dict[str, int] = {}
    epochs, found = [], []
    for epoch, rows in groupby(_rows(folder / BY_CLASS), lambda row: row["epoch"]):
        values = [
            (
                columns.setdefault((row["layer"], row["normalizer"]), len(columns)),
                classes.setdefault(row["class"], len(classes)),
                _value(row["mean"]),
            )
            for row in rows
        ]
        epochs.append(int(epoch))
        found.append(np.array(values))
    if not epochs:
        return None
    means = np.full((len(epochs), len(columns), len(classes)), np.nan)
    for place, of_epoch in enumerate(found):
        means[place, of_epoch[:, 0].astype(int), of_epoch[:, 1].astype(int)] = of_epoch[:, 2]
    return ClassRatios(epochs, [*columns], [*classes], means)


def _by_layer(rows: Iterable[dict[str, str]]) -> Iterable[tuple[object, Iterable[dict[str, str]]]]:
    return groupby(rows, lambda row: (row["layer"], row["mixture"]))


def _layer(rows: list[dict[str, str]]) -> LayerRatios:
    first = rows[0]
    mean, std, largest = (
        np.array([_value(row[name]) for row in rows]) for name in ("mean", "std", "largest")
    )
    return LayerRatios(
        layer=first["layer"],
        kind=first["kind"],
        mixture=first["mixture"],
        normalizers=tuple(row["normalizer"] for row in rows),
        samples=int(first["samples"]),
        mean=mean,
        std=std,
        largest=largest,
        entropy=_value(first["entropy"]),
        spread=_value(first["spread"]),
        between=_value(first["between"]),
    )


def _append(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if not path.is_file():
        writer.writerow(columns)
    writer.writerows(rows)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        # Names of classes may be names of folders, which need not be UTF-8.
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table without one cut short; none where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        is_cut = file.read(1) != b"\n"
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        held: dict[str, str] | None = None
        for row in csv.DictReader(file):
            if None in row or None in row.values():  # cut on a full disk, and others written after it
                continue
            if held is not None:
                yield held
            held = row
        if held is not None and not is_cut:
            yield held


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.7g}"


def _value(text: str) -> float:
    """What `_number` wrote: after a divergence λ is no number."""
    return float(text or "nan")
