"""Leaving on a signal: save where training stands, stop on all processes at the same step, requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from tasks.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(Callback):
    """On SIGTERM or SIGUSR1, finish the step, write `last.ckpt` and stop.

    A signal to one process stops all, at the same step: they tell each other after every optimiser step.
    Lightning's own handler sends a message from within the handler, among those of the step that it
    interrupts, and hears of signals to rank 0 alone.

    Args:
        path: The checkpoint to write; None where this process does not know it.
        within_epoch: Whether the task goes on from the middle of an epoch; otherwise the checkpoint of the
            last whole epoch stays.

    Attributes:
        received: The signal, once all know it; 0 for none.
        saved: The checkpoint that was written in the middle of an epoch.
    """

    def __init__(self, path: Path | None, within_epoch: bool) -> None:
        self.path, self.within_epoch = path, within_epoch
        self.received, self.saved = 0, False
        self._own = 0
        self._written_by: tuple[int, int] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell all processes the path of rank 0."""
        self.path = trainer.strategy.broadcast(self.path)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, in place of Lightning's handlers, which were set just before."""
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, and see whether a checkpoint from the middle of an epoch fits this run."""
        self._listen()
        if self._written_by and _batches_done(trainer) and self._written_by != _processes(trainer):
            (before, images), (now, given) = self._written_by, _processes(trainer)
            raise UserError(
                f"--resume: expected {before} processes × {images} images, which wrote this checkpoint in "
                f"the middle of an epoch, got {now} × {given}"
            )
        self._written_by = _processes(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is nothing to save: die of a signal, as a process does."""
        for number in SIGNALS:
            _handle(number, signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the loop stop behind this step if any process was told to."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half-gathered gradients are in no checkpoint
        told = torch.tensor(self._own, device=trainer.strategy.root_device)
        self.received = int(trainer.strategy.reduce(told, reduce_op="max"))
        self._pass_on(trainer, bool(self.received))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let a validation that follows the step come to its end."""
        self._pass_on(trainer, False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop behind it."""
        self._pass_on(trainer, bool(self.received))

    def _pass_on(self, trainer: pl.Trainer, stop: bool) -> None:
        # What Lightning's own handler sets: its loop then stops behind the step's logging, and at the end of
        # an epoch behind the checkpoints.
        trainer._signal_connector.received_sigterm = stop

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the checkpoint, unless the epoch's own was just written."""
        is_whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if isinstance(exception, SIGTERMException) and self.path and self.within_epoch and not is_whole:
            trainer.save_checkpoint(self.path)
            self.saved = True

    def state_dict(self) -> dict[str, Any]:
        """Who trained."""
        return {"written_by": list(self._written_by or ())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Who trained until the checkpoint."""
        self._written_by = tuple(state_dict["written_by"]) or None

    def _listen(self) -> None:
        for number in SIGNALS:
            _handle(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._own = number


def requeue(number: int) -> str:
    """Ask SLURM to queue the job again after SIGUSR1, which announces its time limit; '' where there is none.

    After SIGTERM the scheduler requeues by itself what it preempts, and a cancelled job stays cancelled.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if number != signal.SIGUSR1 or not job:
        return ""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        return f"job {job} is not requeued: scontrol cannot be run ({error.strerror})"
    if done.returncode:
        return f"job {job} is not requeued: {done.stderr.strip() or f'scontrol left with {done.returncode}'}"
    return f"job {job} is requeued"


def _handle(number: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
        signal.signal(number, handler)


def _batches_done(trainer: pl.Trainer) -> int:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return 0 if progress.is_last_batch else progress.current.completed


def _processes(trainer: pl.Trainer) -> tuple[int, int]:
    return trainer.world_size, trainer.datamodule.batch_size  # type: ignore[attr-defined]
