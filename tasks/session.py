"""What the subcommands do once data, model and trainer are built."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from tasks import checkpoint as ckpt
from tasks import report
from tasks.base import BaseModule
from tasks.data import BaseDataModule
from tasks.errors import INTERRUPTED
from tasks.loggers import close_loggers
from tasks.lost import lost_processes
from tasks.preemption import StopOnSignal, requeue
from tasks.run_folder import RunFolder
from tasks.small_maps import small_maps_explained


@dataclass
class Session:
    """One call of the command line.

    Attributes:
        task: Name of the task.
        args: Command line without the program's name.
        trainer: The trainer, with loggers and callbacks.
        model: The task's module.
        datamodule: The task's data.
        checkpoint: Checkpoint to resume or to evaluate.
        loaded: Its content.
        folder: Run folder of a fit; None on ranks other than 0.
    """

    task: str
    args: Sequence[str]
    trainer: pl.Trainer
    model: BaseModule
    datamodule: BaseDataModule
    checkpoint: Path | None
    loaded: dict[str, Any] | None
    folder: RunFolder | None

    def fit(self, test: bool) -> None:
        """Train, test the best checkpoint if asked to, and tell the outcome."""
        start = time.perf_counter()
        try:
            with self._explained(self._interrupted), lost_processes():
                epochs = self._train()
                tested = self._test_best() if test else {}
        except SIGTERMException:
            raise SystemExit(self._stopped()) from None
        if self.folder:
            self.folder.end()
        if self.trainer.is_global_zero:
            best = self._best_score()
            rows = {
                **({} if best is None else {f"best {self.model.monitor}": report.fraction(best)}),
                **{name: report.fraction(value) for name, value in tested.items()},
                **self.model.outcome_rows(),
                "epochs": str(epochs),
                "wall time": report.duration(time.perf_counter() - start),
                "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
                **({"run folder": str(self.folder.path)} if self.folder else {}),
            }
            unreadable = self.datamodule.unreadable_summary()
            if unreadable:
                rows["unreadable"] = unreadable
            report.print_table(f"{self.task} fit", rows)
            if self.folder:
                self._write_report(self.folder, epochs, best, tested)
        close_loggers(self.trainer.loggers)

    def evaluate(self, stage: Literal["validate", "test"]) -> None:
        """Print the metrics of the checkpoint on a split."""
        with self._explained():
            results = getattr(self.trainer, stage)(verbose=False, **self._what(self.checkpoint))
        if self.trainer.is_global_zero:
            rows = {name: report.fraction(value) for name, value in _merged(results).items()}
            if unreadable := self.datamodule.unreadable_summary():
                rows["unreadable"] = unreadable
            report.print_table(f"{self.task} {stage}", {**rows, "checkpoint": str(self.checkpoint)})

    def predict(self) -> None:
        """Run the checkpoint over the samples to predict; a callback writes the file."""
        with self._explained():
            self.trainer.predict(return_predictions=False, **self._what(self.checkpoint))

    @contextmanager
    def _explained(self, hint: Callable[[], str] = lambda: "interrupted") -> Iterator[None]:
        with exit_on_interrupt(self.trainer, hint), small_maps_explained(self.model, self.datamodule):
            yield

    def _train(self) -> int:
        """Train and return the number of epochs that the run has."""
        if self.loaded:
            done = ckpt.epochs_done(self.loaded)
            if ckpt.is_finished(self.loaded, self.trainer.max_epochs):
                self._say(f"{self.checkpoint}: this run has all of its {done} epochs, nothing to train")
                return done
            batches = ckpt.batches_done(self.loaded)
            within = f" and {batches} batches of the next" if batches else ""
            self._say(f"resuming {self.checkpoint} after epoch {done}{within}")
        self.trainer.fit(**self._what(self.checkpoint))
        return self.trainer.current_epoch

    def _test_best(self) -> dict[str, float]:
        best: Path | None = None
        callback = self.trainer.checkpoint_callback
        if self.trainer.current_epoch == 0 and self.checkpoint:  # a finished run: nothing was trained
            best = self.checkpoint.with_name("best.ckpt")
        elif isinstance(callback, ModelCheckpoint) and callback.dirpath:
            best = Path(callback.dirpath) / "best.ckpt"  # the same on all ranks, unlike self.folder
        if best and not best.is_file():  # as with limit_val_batches 0
            best = best.with_name("last.ckpt")
        results = self.trainer.test(verbose=False, **self._what(best))
        return _merged(results)

    def _what(self, checkpoint: Path | None) -> dict[str, Any]:
        """Arguments that all of the trainer's entry points share; checkpoints never run code."""
        return {
            "model": self.model,
            "datamodule": self.datamodule,
            "ckpt_path": checkpoint,
            "weights_only": True,
        }

    def _write_report(
        self, folder: RunFolder, epochs: int, best: float | None, tested: dict[str, float]
    ) -> None:
        from tasks.loggers.record import publish
        from tasks.report.facts import collect_facts
        from tasks.report.ratio_section import ratio_sections
        from tasks.report.run import write_report

        facts = collect_facts(folder.path, self.task, self.trainer, epochs, best, tested)
        sections = [
            *self.model.report_sections(self.datamodule),
            *ratio_sections(folder.path, self.datamodule),
        ]
        write_report(folder.path, facts, sections)
        publish(self.trainer.loggers, folder, facts, lambda: self.model.panels(self.datamodule))

    def _best_score(self) -> float | None:
        score = getattr(self.trainer.checkpoint_callback, "best_model_score", None)
        if score is None and self.loaded:
            score = ckpt.best_score(self.loaded)
        return None if score is None else float(score)

    def _stopped(self) -> int:
        """Say how to go on after a signal, and return the exit code."""
        stop = next(call for call in self.trainer.callbacks if isinstance(call, StopOnSignal))  # type: ignore[attr-defined]
        if self.trainer.is_global_zero:
            where = f"in epoch {self.trainer.current_epoch + 1}" if stop.saved else "after a whole epoch"
            told = f"stopped by {signal.Signals(stop.received).name} {where}, step {self.trainer.global_step}"
            print("; ".join(filter(None, [self._resume_hint(told), requeue(stop.received)])), flush=True)
        return 128 + stop.received

    def _interrupted(self) -> str:
        """End the run after Ctrl-C and say how to go on."""
        if self.folder:
            self.folder.end()
        return self._resume_hint("interrupted")

    def _resume_hint(self, told: str) -> str:
        """How to go on."""
        if self.folder is None or not self.folder.last.is_file():
            return f"{told}: no epoch was finished, so there is no checkpoint to resume from"
        args = [*without_option(self.args, "--resume"), "--resume", str(self.folder.last)]
        return f"{told}: {self.folder.last} is kept; resume with\n  {command(self.task, args)}"

    def _say(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(text, flush=True)


def _merged(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of all loaders, whose names differ."""
    return {name: value for result in results for name, value in result.items()}


def command(task: str, args: Sequence[str]) -> str:
    """The command line of a task, as typed into a shell."""
    return f"python -m tasks.{task} {shlex.join(args)}"


@contextmanager
def exit_on_interrupt(trainer: pl.Trainer, hint: Callable[[], str]) -> Iterator[None]:
    """Leave with code 130 after Ctrl-C (Lightning shuts down and leaves with 1), saying `hint()`."""
    try:
        yield
    except SystemExit as leaving:
        # A signal of another kind is a SystemExit as well.
        if not trainer.interrupted or isinstance(leaving, SIGTERMException):
            raise
        if trainer.is_global_zero:
            print(hint(), flush=True)
        raise SystemExit(INTERRUPTED) from None


def without_option(args: Sequence[str], option: str) -> list[str]:
    """The arguments without `--option value` and `--option=value`."""
    kept: list[str] = []
    is_value = False
    for arg in args:
        if not is_value and arg != option and not arg.startswith(f"{option}="):
            kept.append(arg)
        is_value = not is_value and arg == option
    return kept
