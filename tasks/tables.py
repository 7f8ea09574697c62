"""Tables as CSV files that are there whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from tasks.whole_file import whole_file


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file under another name, then rename it."""
    # Names of files need not be UTF-8.
    with whole_file(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_predictions(path: Path, rows: Iterable[tuple[str, str, float, str]]) -> None:
    """Write (sample, predicted class, its probability, true class or '' for unknown), and say how many."""
    lines = [(sample, predicted, f"{value:.6f}", true) for sample, predicted, value, true in rows]
    write_table(path, ("sample", "predicted", "probability", "true"), lines)
    print(f"{len(lines)} prediction{'s' * (len(lines) != 1)} written to {path}")
