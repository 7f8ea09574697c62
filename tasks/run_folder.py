"""Run folders `runs/<task>/<name>/`: claimed once, never overwritten, found again to be resumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """Configuration that the run was started with."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Checkpoint with the best validation metric."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint of the last finished epoch."""
        return self.checkpoints / "last.ckpt"

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder | None:
        """The run folder in which a checkpoint lies, or None where it lies elsewhere."""
        lies_in_run = (
            checkpoint.parent.name == "checkpoints" and (checkpoint.parents[1] / "config.yaml").is_file()
        )
        return cls(checkpoint.parents[1]) if lies_in_run else None

    @classmethod
    def claim(cls, parent: Path, name: str) -> RunFolder:
        """Make `parent/name`, or `parent/name-2`, `-3`, … where that exists.

        Raises:
            UserError: `name` is no plain folder name, or the folder cannot be made.
        """
        if not re.fullmatch(r"[\w.+=,@ -]+", name) or name in (".", ".."):
            raise UserError(f"--name: expected a plain folder name, got {name!r}")
        for path in _numbered(parent, name):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not parent.is_dir():
                    raise UserError(f"--runs_dir: {parent} is not a folder") from None
                continue
            except OSError as error:
                raise UserError(f"the run folder {path} cannot be made: {error.strerror}") from error
            return cls(path)
        raise AssertionError("unreachable: the numbers do not end")

    def release(self) -> None:
        """Remove the folder again, and the task's, where nothing was written into it."""
        for path in (self.path, self.path.parent):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def checkpoint_to_resume(resume: str, parent: Path, name: str) -> Path | None:
    """The checkpoint that `--resume` means: a file, or with "auto" that of the newest run of that name.

    Raises:
        UserError: A file was named that does not exist.
    """
    if resume != AUTO:
        return existing_checkpoint(resume, "--resume", "a checkpoint file or 'auto'")
    newest: Path | None = None
    for path in _numbered(parent, name):
        if not path.exists():
            return newest
        last = RunFolder(path).last
        newest = last if last.is_file() else newest
    raise AssertionError("unreachable: the numbers do not end")


def existing_checkpoint(path: str, option: str, expected: str = "a checkpoint file") -> Path:
    """The path of a checkpoint that must be there.

    Raises:
        UserError: There is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{option}: expected {expected}, got {path!r}, which does not exist")
    return Path(path)


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    number = 2
    while True:
        yield parent / f"{name}-{number}"
        number += 1
