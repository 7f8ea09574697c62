"""Run folders `runs/<task>/<name>/`: claimed once, never overwritten, found again to be resumed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError


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
        """Checkpoint of the last finished epoch, or of the step at which a signal stopped the run."""
        return self.checkpoints / "last.ckpt"

    @property
    def _launch(self) -> Path:
        """Name of the launch that has not ended this run yet."""
        return self.path / "launch"

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

    @classmethod
    def of_launch(cls, launch: str, parent: Path, name: str) -> RunFolder | None:
        """The folder of this name that a launch began to fill and has not ended."""
        runs = [run for run in _runs(parent, name) if run.belongs_to(launch)]
        return runs[-1] if runs else None

    def belongs_to(self, launch: str) -> bool:
        """Whether a launch fills this folder."""
        return self._launch.is_file() and self._launch.read_text(encoding="utf-8") == launch

    def begin(self, launch: str | None) -> None:
        """Note the launch, so that its processes find the folder when they are started again."""
        if launch:
            self._launch.write_text(launch, encoding="utf-8")

    def end(self) -> None:
        """Leave the folder to no launch: the next one of the same name is another run."""
        self._launch.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the folder again, and the task's, where nothing was written into it."""
        for path in (self.path, self.path.parent):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def newest_run(parent: Path, name: str) -> RunFolder | None:
    """The newest run of a name that has a checkpoint."""
    runs = [run for run in _runs(parent, name) if run.last.is_file() or run.best.is_file()]
    return runs[-1] if runs else None


def evaluated_checkpoint(path: str) -> Path:
    """What `--ckpt_path` means: a file, or a run folder's best checkpoint.

    Raises:
        UserError: There is none.
    """
    run = RunFolder(Path(path))
    best = next((file for file in (run.best, run.last) if file.is_file()), None)
    return best or existing_checkpoint(path, "--ckpt_path", "a checkpoint file or a run folder")


def existing_checkpoint(path: str, option: str, expected: str = "a checkpoint file") -> Path:
    """The path of a checkpoint that must be there.

    Raises:
        UserError: There is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{option}: expected {expected}, got {path!r}, which does not exist")
    return Path(path)


def _runs(parent: Path, name: str) -> Iterator[RunFolder]:
    """The runs of a name, the oldest first."""
    return map(RunFolder, itertools.takewhile(Path.exists, _numbered(parent, name)))


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    number = 2
    while True:
        yield parent / f"{name}-{number}"
        number += 1
