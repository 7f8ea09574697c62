"""`ratios.csv` of a run: the mixture of every layer, epoch by epoch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.ratios.survey import LayerRatios
from tasks.tables import write_table

RATIOS, BY_CLASS = "ratios.csv", "ratios_by_class.csv"
COLUMNS = (
    "epoch", "step", "split", "layer", "kind", "mixture", "normalizer",
    "samples", "mean", "std", "largest", "entropy", "spread", "between",
)  # fmt: skip


class Epoch(NamedTuple):
    """The mixtures of all layers at one time."""

    epoch: int
    step: int
    split: str
    layers: list[LayerRatios]


def append_ratios(folder: Path, when: Epoch) -> None:
    """Append a row for each layer and normalizer, in one write."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    path = folder / RATIOS
    if not path.is_file():
        writer.writerow(COLUMNS)
    for layer in when.layers:
        for place, normalizer in enumerate(layer.normalizers):
            values = (layer.mean[place], layer.std[place], layer.largest[place])
            numbers = (*values, layer.entropy, layer.spread, layer.between)
            names = (layer.layer, layer.kind, layer.mixture, normalizer, layer.samples)
            writer.writerow([*when[:3], *names, *map(_number, numbers)])
    # One write, not many: a process that is killed leaves all of it or, on a full disk, a last row cut short.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(text.getvalue().encode())


def trim_ratios(folder: Path, step: int) -> None:
    """Drop the rows from optimiser step `step` on, which were written after the checkpoint of that step."""
    path = folder / RATIOS
    if path.is_file():
        kept = [row for row in _rows(path) if int(row["step"]) < step]
        write_table(path, COLUMNS, [[row[name] for name in COLUMNS] for row in kept])


def read_ratios(folder: Path) -> list[Epoch]:
    """What `ratios.csv` of a run holds, in its order; nothing where there is no file."""
    path = folder / RATIOS
    rows = _rows(path) if path.is_file() else []
    return [
        Epoch(int(epoch), int(step), split, [_layer(list(of_layer)) for _, of_layer in _by_layer(found)])
        for (epoch, step, split), found in groupby(
            rows, lambda row: (row["epoch"], row["step"], row["split"])
        )
    ]


def write_by_class(folder: Path, epoch: int, layers: Sequence[LayerRatios], names: Sequence[str]) -> None:
    """Write `ratios_by_class.csv`: mean λ by class, layer and normalizer, of one epoch."""
    header = ("epoch", "layer", "normalizer", "class", "samples", "mean")
    write_table(folder / BY_CLASS, header, _class_rows(epoch, layers, names))


def _class_rows(
    epoch: int, layers: Iterable[LayerRatios], names: Sequence[str]
) -> Iterable[tuple[object, ...]]:
    for layer in layers:
        if layer.class_mean is None or layer.class_samples is None:
            continue
        for label in np.flatnonzero(layer.class_samples).tolist():
            for normalizer, mean in zip(layer.normalizers, layer.class_mean[label], strict=True):
                samples = int(layer.class_samples[label])
                yield epoch, layer.layer, normalizer, names[label], samples, _number(mean)


def _by_layer(rows: Iterable[dict[str, str]]) -> Iterable[tuple[object, Iterable[dict[str, str]]]]:
    return groupby(rows, lambda row: (row["layer"], row["mixture"]))


def _layer(rows: list[dict[str, str]]) -> LayerRatios:
    first = rows[0]
    mean, std, largest = (np.array([float(row[name]) for row in rows]) for name in ("mean", "std", "largest"))
    return LayerRatios(
        layer=first["layer"],
        kind=first["kind"],
        mixture=first["mixture"],
        normalizers=tuple(row["normalizer"] for row in rows),
        samples=int(first["samples"]),
        mean=mean,
        std=std,
        largest=largest,
        entropy=float(first["entropy"]),
        spread=float(first["spread"]),
        between=float(first["between"] or "nan"),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    whole, newline, _ = text.rpartition("\n")  # what follows is a row cut short
    return [row for row in csv.DictReader(io.StringIO(whole + newline)) if None not in row.values()]


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.7g}"
