"""A table of finished runs on disk: a row as each ends, so that an interrupted series goes on."""

from __future__ import annotations

import csv
import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Rows:
    """Rows of a CSV file; several processes may add to it.

    Args:
        path: The file; made with its first row.
        columns: Names of the columns.
        key: How many of the first columns name a run.

    Raises:
        RuntimeError: the file has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: int) -> None:
        self.path, self.columns, self.key = path, tuple(columns), tuple(columns[:key])
        if path.exists() and path.read_text(encoding="utf-8").splitlines()[:1] != [",".join(columns)]:
            raise RuntimeError(f"{path}: expected the columns {', '.join(columns)}: move the file away")

    def read(self) -> list[dict[str, str]]:
        """All rows, in the order in which they came."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def has(self, *key: object) -> bool:
        """Whether the run has a row."""
        wanted = [str(value) for value in key]
        return any([row[name] for name in self.key] == wanted for row in self.read())

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, if its run has none yet, and print it; a column without a value is left empty."""
        if self.has(*(row[name] for name in self.key)):
            return
        values = [row.get(name, "") for name in self.columns]
        cells = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(self.columns)
            writer.writerow(cells)
        print(*(f"{name}={cell}" for name, cell in zip(self.columns, cells, strict=True) if cell), flush=True)
