"""`noisy_labels.csv`: the labels that a run was given, beside the true ones."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tasks.errors import UserError
from tasks.noisy_labels.noise import Labels
from tasks.tables import write_table

NOISY_LABELS = "noisy_labels.csv"
_HEADER = ["sample", "given", "true"]


def write_labels(path: Path, samples: Iterable[str], given: Labels, true: Labels) -> None:
    """Write `sample,given,true` for each sample, in the order of the training set.

    Raises:
        ValueError: There are not as many names and labels.
    """
    rows = list(zip(samples, given.tolist(), true.tolist(), strict=True))
    write_table(path, _HEADER, rows)


def read_labels(path: Path, samples: Sequence[str], num_classes: int) -> tuple[Labels, Labels]:
    """Given and true labels of the samples of a training set.

    Args:
        path: A file that `write_labels` wrote.
        samples: Names of the samples, which have to stand in the file in this order.
        num_classes: Number of classes.

    Raises:
        UserError: The file cannot be read or belongs to other data; with the line.
    """
    labels = np.empty((len(samples), 2), np.int64)
    count = 0
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header != _HEADER:
                raise UserError(f"{path}:1: expected {','.join(_HEADER)}, got {','.join(header or [])!r}")
            for row in reader:
                if count < len(samples):
                    labels[count] = _labels(row, samples[count], num_classes, f"{path}:{reader.line_num}")
                count += 1
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if count != len(samples):
        raise UserError(f"{path}: expected the labels of {len(samples)} samples, got {count}")
    return labels[:, 0].copy(), labels[:, 1].copy()


def _labels(row: list[str], sample: str, num_classes: int, place: str) -> tuple[int, int]:
    if len(row) != len(_HEADER):
        raise UserError(f"{place}: expected {','.join(_HEADER)}, got {','.join(row)!r}")
    if row[0] != sample:
        raise UserError(f"{place}: expected sample {sample!r}, got {row[0]!r}: labels of other data")
    for text in row[1:]:
        if not (text.isascii() and text.isdigit() and int(text) < num_classes):
            raise UserError(f"{place}: expected a class from 0 to {num_classes - 1}, got {text!r}")
    return int(row[1]), int(row[2])
