"""WebVision's list files: what they name, what is left out of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.errors import UserError
from tasks.file_list import FileList, ListedFiles, read_list
from tasks.names import distinct


@dataclass(frozen=True)
class Listing:
    """The files of one list.

    Attributes:
        path: The list.
        files: Files that are there, each once.
        missing: Number of files that are not.
        repeats: Number of lines that repeat another.
        example: Place and name of the first missing file.
    """

    path: Path
    files: FileList
    missing: int
    repeats: int
    example: str

    @property
    def faults(self) -> str:
        """What was left out; '' for nothing."""
        parts = [f"{self.missing:,} missing ({self.example})"] if self.missing else []
        parts += [f"{self.repeats:,} repeated"] if self.repeats else []
        return f"{self.path}: left out {' and '.join(parts)} of {self.total:,} lines" if parts else ""

    @property
    def total(self) -> int:
        """Number of lines."""
        return len(self.files) + self.missing + self.repeats


def read_listing(path: Path, base: Path, classes: int, rename: Callable[[str], str] | None = None) -> Listing:
    """Read a list of lines `<file> <label>`, with either kind of line end.

    Args:
        path: The list.
        base: Folder that the names are relative to.
        classes: Number of classes of the whole data set.
        rename: From a listed name to that of the file.

    Raises:
        UserError: A line is malformed, climbs out of the folder, has a label out of range or repeats a file
            with another label; with the line.
    """
    listed = read_list(path, (base,), rename=rename, allow_missing=True)
    labels = listed.files.labels
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{_place(path, listed, row)}: expected a label from 0 to {classes - 1}, got {labels[row]}"
            f" ({len(wrong):,} such lines)"
        )
    for row, first in listed.repeats:
        if labels[row] != labels[first]:
            raise UserError(
                f"{_place(path, listed, row)}: expected label {labels[first]} for {listed.files.name(row)}, "
                f"as in line {listed.lines[first]}, got {labels[row]}"
            )
    missing, files = listed.missing, listed.files
    dropped = missing + [row for row, _ in listed.repeats]
    if dropped:
        files = files.select(np.setdiff1d(np.arange(len(files)), dropped))
    first = min(missing, default=-1)
    example = f"line {listed.lines[first]}: {listed.files.name(first)}" if missing else ""
    return Listing(path, files, len(missing), len(listed.repeats), example)


def read_synsets(path: Path) -> tuple[list[str], list[str]]:
    """Wnid and name of each class: line i of `n01440764 tench, Tinca tinca` is class i.

    Raises:
        UserError: It cannot be read, is malformed or has a wnid twice; with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.root: cannot read {path}: {error}") from error
    wnids: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        wnid, _, names = line.strip().partition(" ")
        if not wnid and number == len(lines):
            continue
        if not (wnid[:1] == "n" and wnid[1:].isdigit() and names.strip()):
            raise UserError(f"{path}:{number}: expected <wnid> <names>, got {line!r}")
        if wnid in wnids:
            raise UserError(f"{path}:{number}: expected each wnid once, got {wnid} again")
        wnids[wnid] = names.split(",")[0].strip()
    if not wnids:
        raise UserError(f"{path}: expected lines of <wnid> <names>, got an empty file")
    return list(wnids), distinct(list(wnids.values()), list(wnids))


def joined(lists: list[FileList]) -> FileList:
    """Several lists with the same root, one behind the other."""
    if len(lists) == 1:
        return lists[0]
    starts = np.cumsum([0] + [len(files.packed) for files in lists])
    return FileList(
        lists[0].root,
        np.concatenate([files.packed for files in lists]),
        np.concatenate([files.ends + start for files, start in zip(lists, starts[:-1], strict=True)]),
        np.concatenate([files.labels for files in lists]),
    )


def _place(path: Path, listed: ListedFiles, row: int) -> str:
    return f"{path}:{listed.lines[row]}"
