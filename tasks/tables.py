"""Tables as CSV files that are there whole or not at all."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file under another name, then rename it."""
    # A name of its own for each writer: two at once would write into one file.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        # Names of files need not be UTF-8.
        with open(descriptor, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o644)
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def write_predictions(path: Path, rows: Iterable[tuple[str, str, float, str]]) -> None:
    """Write (sample, predicted class, its probability, true class or '' for unknown), and say how many."""
    lines = [(sample, predicted, f"{value:.6f}", true) for sample, predicted, value, true in rows]
    write_table(path, ("sample", "predicted", "probability", "true"), lines)
    print(f"{len(lines)} prediction{'s' * (len(lines) != 1)} written to {path}")
