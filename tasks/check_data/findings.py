"""What a check found, gathered file by file, and its report as text, JSON or CSV."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.check_data.trees import Tree
from tasks.check_data.verify import DIGEST_BYTES, Verdict


@dataclass
class Extreme:
    """The smallest or the largest image."""

    path: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}×{self.height} {self.path}"


@dataclass
class Findings:
    """The result of a check.

    Attributes:
        data: Name of the data set.
        root: Its folder.
        files: Number of files.
        problems: What is wrong with the layout.
        broken: Path and reason of each file that cannot be read.
        counts: Files of each class, broken ones included, by split.
        kinds: Readable files of each format and mode; all but RGB are converted when they are read.
        duplicates: Groups of files with the same bytes: where they meet ("class", "classes" or "splits", the
            widest), and their paths.
        smallest: Fewest pixels.
        largest: Most pixels.
    """

    data: str
    root: str
    files: int
    problems: list[str]
    counts: dict[str, dict[str, int]]
    broken: list[dict[str, str]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    smallest: Extreme | None = None
    largest: Extreme | None = None

    @property
    def clean(self) -> bool:
        """Whether every file can be read and the layout is sound; duplicates do no harm to a run."""
        return not self.problems and not self.broken


class Gatherer:
    """Collects verdicts in arrays of a few bytes a file.

    Args:
        tree: What is checked.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.starts = np.cumsum([0] + [len(part.files) for part in tree.parts])
        self.digests: NDArray[np.void] = np.zeros(len(tree), f"V{DIGEST_BYTES}")
        self.sizes = np.zeros((len(tree), 2), np.int32)
        self.kinds: Counter[str] = Counter()
        self.reasons: dict[int, str] = {}

    def add(self, part: int, index: int, verdict: Verdict) -> None:
        """Take the verdict on a file."""
        row = int(self.starts[part]) + index
        if verdict.reason:
            self.reasons[row] = verdict.reason
            return
        self.digests[row] = np.void(verdict.digest)
        self.sizes[row] = verdict.width, verdict.height
        self.kinds[verdict.kind] += 1

    def findings(self, data: str, root: Path) -> Findings:
        """All that was found."""
        problems = self.tree.problems or ([] if len(self.tree) else [f"{root}: expected images, got none"])
        result = Findings(
            data, str(root), len(self.tree), problems, {p.split: p.counts() for p in self.tree.parts}
        )
        result.broken = [
            {"path": self.path(row), "reason": self.reasons[row]} for row in sorted(self.reasons)
        ]
        result.kinds = dict(self.kinds.most_common())
        areas = self.sizes[:, 0].astype(np.int64) * self.sizes[:, 1]
        sound = np.flatnonzero(areas)
        if len(sound):
            extremes = (sound[areas[sound].argmin()], sound[areas[sound].argmax()])
            result.smallest, result.largest = (
                Extreme(self.path(row), *self.sizes[row].tolist()) for row in extremes
            )
        result.duplicates = [
            {"within": self._where(group), "paths": [self.path(row) for row in group]}
            for group in equal_rows(self.digests[sound], sound)
        ]
        return result

    def path(self, row: int) -> str:
        """Path of a file."""
        part, index = self._place(row)
        return str(self.tree.parts[part].files.path(index))

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, int(row - self.starts[part])

    def _where(self, rows: list[int]) -> str:
        places = [self._place(row) for row in rows]
        if len({part for part, _ in places}) > 1:
            return "splits"
        labels = {int(self.tree.parts[part].files.labels[index]) for part, index in places}
        return "classes" if len(labels) > 1 else "class"


def equal_rows(digests: NDArray[np.void], rows: NDArray[np.int64]) -> list[list[int]]:
    """Groups of two or more rows with the same digest, in the order of their first rows."""
    if not len(rows):
        return []
    _, group_of, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(sizes[group_of] > 1)
    groups: dict[int, list[int]] = {}
    for position in repeated.tolist():
        groups.setdefault(int(group_of[position]), []).append(int(rows[position]))
    return list(groups.values())


def write_json(findings: Findings, path: Path) -> None:
    """Everything, as one object."""
    path.write_text(json.dumps(asdict(findings), indent=1, ensure_ascii=False) + "\n", "utf-8", _SURROGATES)


def write_csv(findings: Findings, path: Path) -> None:
    """A row a finding: what it is, its split and class or its path, and the detail."""
    with path.open("w", encoding="utf-8", errors=_SURROGATES, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["finding", "split", "class", "path", "detail"])
        writer.writerows(["problem", "", "", "", problem] for problem in findings.problems)
        writer.writerows(["broken", "", "", one["path"], one["reason"]] for one in findings.broken)
        for number, group in enumerate(findings.duplicates, 1):
            detail = f"group {number}, within {group['within']}"
            writer.writerows(["duplicate", "", "", path, detail] for path in group["paths"])
        for split, counts in findings.counts.items():
            writer.writerows(["count", split, name, "", count] for name, count in counts.items())
        writer.writerows(["kind", "", "", "", f"{kind}: {count}"] for kind, count in findings.kinds.items())


def write_text(findings: Findings, path: Path) -> None:
    """Sections to be read: what is wrong first, the counts of the classes last."""
    sections = {
        "problems": findings.problems,
        "broken files": [f"{one['path']}: {one['reason']}" for one in findings.broken],
        "duplicates": [f"within {one['within']}: {', '.join(one['paths'])}" for one in findings.duplicates],
        "formats": [f"{kind}: {count}" for kind, count in findings.kinds.items()],
        "smallest and largest": [str(one) for one in (findings.smallest, findings.largest) if one],
        **{
            f"{split}, files of each class": [f"{name}: {count}" for name, count in counts.items()]
            for split, counts in findings.counts.items()
        },
    }
    lines = [f"{findings.data} in {findings.root}: {findings.files} files"]
    for title, entries in sections.items():
        lines += ["", f"{title} ({len(entries)})", *(f"  {entry}" for entry in entries)]
    path.write_text("\n".join(lines) + "\n", "utf-8", _SURROGATES)


WRITERS = {".txt": write_text, ".json": write_json, ".csv": write_csv}
_SURROGATES = "surrogateescape"  # file names that are not UTF-8 are written as the bytes that they are
