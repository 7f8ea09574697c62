"""Millions of file names in a few arrays, from folders and from list files.

Python objects would take gigabytes, once more in each loader process as soon as it counts references; arrays
are shared by forked processes.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError


@dataclass(frozen=True)
class FileList:
    """Files below one folder, with an integer each.

    Attributes:
        root: The folder.
        packed: Names relative to it, one behind the other.
        ends: (N,) where each name ends.
        labels: (N,) class of each file, −1 for unknown.
    """

    root: Path
    packed: NDArray[np.uint8]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, root: Path, names: Iterable[str], labels: NDArray[np.int64]) -> FileList:
        """Pack names, which may come one at a time."""
        blob, ends = bytearray(), array("q")
        for name in names:
            blob += os.fsencode(name)
            ends.append(len(blob))
        return cls(root, np.array(blob, np.uint8), np.array(ends, np.int64), labels)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """Name of a file relative to the folder."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.packed[start : self.ends[index]].tobytes())

    def path(self, index: int) -> Path:
        """Path of a file."""
        return self.root / self.name(index)

    def select(self, rows: NDArray[np.int64]) -> FileList:
        """The files of some rows."""
        return FileList.of(self.root, map(self.name, rows.tolist()), self.labels[rows])


def walk(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files below a folder by suffix, relative to it, in the order of torchvision's ImageFolder."""
    found: list[str] = []
    places = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(place, name)]
        places.append((place, names))
    for place, names in sorted(places):
        prefix = os.path.relpath(place, folder)
        here = sorted(name for name in names if name.lower().endswith(suffixes))
        found += here if prefix == "." else [f"{prefix}/{name}" for name in here]
    return found


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder in `place` is a link to `place` or above it, which would be walked for ever."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))


def images_at(path: Path) -> FileList:
    """An image, or the images below a folder in the order of their names.

    Raises:
        UserError: There is none.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if path.is_dir():
        names = sorted(walk(path, IMG_EXTENSIONS))
        if not names:
            raise UserError(f"--images: expected images ({', '.join(IMG_EXTENSIONS)}), got none in {path}")
        return FileList.of(path, names, np.full(len(names), -1))
    if not path.is_file():
        raise UserError(f"--images: expected an image or a folder, got {str(path)!r}, which does not exist")
    return FileList.of(path.parent, [path.name], np.full(1, -1))


@dataclass(frozen=True)
class ListedFiles:
    """What a list file names.

    Attributes:
        files: The files and their labels, in its order.
        lines: (N,) line of each, from 1.
        folders: Folders that they lie in, relative to the root of the files.
        folder_of: (N,) position of each file's folder among these.
        missing: Rows of files that are not there.
        repeats: Rows of files that are listed before, each with the row where; only if missing files may be.
    """

    files: FileList
    lines: NDArray[np.int64]
    folders: list[str]
    folder_of: NDArray[np.int64]
    missing: list[int] = field(default_factory=list)
    repeats: list[tuple[int, int]] = field(default_factory=list)


def read_list(
    path: Path,
    bases: tuple[Path, ...],
    *,
    rename: Callable[[str], str] | None = None,
    allow_missing: bool = False,
) -> ListedFiles:
    """Read a list file of lines `<file> <label>`.

    Args:
        path: The list file.
        bases: Folders that the files may be relative to: the first that holds the first file is taken.
        rename: From a listed name to that of the file.
        allow_missing: Whether files may be missing or listed twice; the result says which.

    Raises:
        UserError: A line is malformed, or its file is missing or outside of the base; with path and line.
    """
    blob, folders = bytearray(), dict[str, int]()
    ends, labels, lines, folder_of = array("q"), array("q"), array("q"), array("q")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                name, label = _fields(line, path, number)
                name = rename(name) if rename else name
                blob += os.fsencode(name)
                ends.append(len(blob))
                labels.append(label)
                lines.append(number)
                folder_of.append(folders.setdefault(name.rpartition("/")[0], len(folders)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not ends:
        raise UserError(f"{path}: expected lines of <file> <label>, got an empty file")
    first = os.fsdecode(bytes(blob[: ends[0]]))
    base = next((base for base in bases if (base / first).exists()), bases[0])
    files = FileList(base, np.array(blob, np.uint8), np.array(ends, np.int64), np.array(labels, np.int64))
    listed = ListedFiles(files, np.array(lines, np.int64), list(folders), np.array(folder_of, np.int64))
    _check_places(listed, path, allow_missing)
    return listed


def _fields(line: str, path: Path, number: int) -> tuple[str, int]:
    fields = line.rsplit(maxsplit=1)
    is_label = len(fields) == 2 and fields[1].isascii() and fields[1].isdigit() and len(fields[1]) < 10
    if not is_label or "\0" in line:
        raise UserError(f"{path}:{number}: expected <file> <label>, got {line.strip()!r}")
    name, label = fields[0].strip(), int(fields[1])
    if name[0] == "/" or (".." in name and ".." in name.split("/")):
        raise UserError(f"{path}:{number}: expected a file below the data's root, got {name!r}")
    # Not for each of a million: few lists have "./" or "//".
    return os.path.normpath(name) if "./" in name or "//" in name else name, label


def _check_places(listed: ListedFiles, path: Path, allow_missing: bool) -> None:
    """Every file exists below the root: one listing a folder in place of a look at each file."""
    files, blob = listed.files, listed.files.packed.tobytes()
    starts = np.concatenate([[0], files.ends[:-1]])
    parts = np.split(
        np.argsort(listed.folder_of, kind="stable"), np.cumsum(np.bincount(listed.folder_of))[:-1]
    )
    root = Path(os.path.realpath(files.root))
    for folder, rows in zip(listed.folders, parts, strict=True):
        place = files.root / folder
        is_inside = Path(os.path.realpath(place)).is_relative_to(root)
        present = _entries(place) if is_inside else {}
        skipped, seen = len(os.fsencode(folder)) + 1 if folder else 0, dict[bytes, int]()
        for row, start, end in zip(
            rows.tolist(), starts[rows].tolist(), files.ends[rows].tolist(), strict=True
        ):
            entry = blob[start + skipped : end]
            if allow_missing and (first := seen.setdefault(entry, row)) != row:
                listed.repeats.append((row, first))
                continue
            is_link = present.get(entry)
            if is_link is False:
                continue
            name, where = files.name(row), f"{path}:{listed.lines[row]}"
            if is_inside and is_link is None:
                if allow_missing:
                    listed.missing.append(row)
                    continue
                raise UserError(f"{where}: {name} does not exist in {files.root}")
            if not is_inside or not Path(os.path.realpath(files.path(row))).is_relative_to(root):
                raise UserError(
                    f"{where}: expected a file below {files.root}, got {name!r}, a link out of it"
                )


def _entries(folder: Path) -> dict[bytes, bool]:
    """Names in a folder, and whether each is a link."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
