"""What a fit goes on from: the run of its own launch, the newest of its name, or a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from tasks.checkpoint import read_checkpoint
from tasks.errors import UserError
from tasks.preflight import is_first_process
from tasks.ranks import gathered
from tasks.run_folder import RunFolder, existing_checkpoint, newest_run

AUTO = "auto"

Found = tuple[Path, dict[str, Any]]
"""A checkpoint and its content."""


class Start(NamedTuple):
    """Where a fit begins.

    Attributes:
        folder: Run folder that it goes on in; None for one of its own.
        found: What it goes on from; None for a new run.
    """

    folder: RunFolder | None
    found: Found | None


def find_start(runs: Path, name: str, resume: str | None, launch: str | None) -> Start:
    """Where a fit begins.

    Processes that are started again go on with what their launch has written, whatever `resume` says: it was
    for the first start.

    Args:
        runs: Folder of the task's runs.
        name: Name of the run.
        resume: A checkpoint file; "auto" for the newest run of that name; None for a new run.
        launch: Name of the launch, if it has one.

    Raises:
        UserError: The file does not exist, or nothing that was found can be read.
    """
    file = None
    if resume not in (None, AUTO):
        file = existing_checkpoint(str(resume), "--resume", "a checkpoint file or 'auto'")
    named = RunFolder.of_checkpoint(file) if file else None
    own = None
    if launch:
        own = named if named and named.belongs_to(launch) else RunFolder.of_launch(launch, runs, name)
    found = newest_intact(own) if own else None
    if found:
        return Start(own, found)
    if file:
        return Start(named or own, (file, read_checkpoint(file)))
    newest = newest_run(runs, name) if resume else None
    return Start(newest, newest_intact(newest)) if newest else Start(own, None)


class SameStart(Callback):
    """Refuse to train where the processes go on from different checkpoints.

    Args:
        path: The checkpoint of this process.
        loaded: Its content.
    """

    def __init__(self, path: Path | None, loaded: dict[str, Any] | None) -> None:
        self.own = f"{path} at step {loaded['global_step']}" if path and loaded else "none"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare.

        Raises:
            UserError: They see different ones.
        """
        seen = sorted(set(gathered([self.own])))
        if len(seen) > 1:
            raise UserError(
                f"the processes see different checkpoints to go on from ({'; '.join(seen)}): expected "
                "--runs_dir on a file system that all nodes share"
            )


def newest_intact(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint of a run, or its best where the last cannot be read; None where there is none.

    Raises:
        UserError: None of them can be read.
    """
    refused: list[UserError] = []
    for path in (folder.last, folder.best):
        if not path.is_file():
            continue
        try:
            found = read_checkpoint(path)
        except UserError as error:
            refused.append(error)
            continue
        if refused and is_first_process():
            print(f"warning: {refused[0]}: going on from {path} in its place", file=sys.stderr, flush=True)
        return path, found
    if refused:
        raise UserError(f"no checkpoint of the run can be read: {'; '.join(map(str, refused))}")
    return None
