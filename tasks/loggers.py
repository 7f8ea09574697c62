"""Loggers of a run: metrics.csv that survives a resume, and W&B that never stops a run."""

from __future__ import annotations

import csv
import functools
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from tasks.run_folder import RunFolder

WandbMode = Literal["auto", "online", "offline", "disabled"]
_INIT_TIMEOUT_SECONDS = 30


@dataclass
class WandbOptions:
    """Weights & Biases.

    Attributes:
        mode: "auto" is online where a key is at hand and offline otherwise; WANDB_MODE decides before that.
        project: Project of the run.
    """

    mode: WandbMode = "auto"
    project: str = "exemplar-norm"


def build_loggers(folder: RunFolder | None, wandb: WandbOptions, resumed_step: int | None) -> list[Logger]:
    """The loggers of a run; ranks other than 0 have no folder and get one that does nothing."""
    if folder is None:
        return [DummyLogger()]
    loggers: list[Logger] = [MetricsCSV(folder.path, resumed_step)]
    wandb_logger = _build_wandb(folder, wandb)
    return [*loggers, wandb_logger] if wandb_logger else loggers


def close_loggers(loggers: list[Logger]) -> None:
    """Finish the W&B run, so that a later one in the same process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, ResilientWandb):
            logger.finish()


def _forgiving(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a logger's method fail without stopping the run; the first failure of each logger is told."""

    @functools.wraps(method)
    def call(self: Logger, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # a full disk, a lost connection: nothing that training needs
            if not getattr(self, "_told", False):
                self._told = True  # type: ignore[attr-defined]
                rank_zero_warn(f"{type(self).__name__} failed, training goes on without it: {error!r}")
            return None

    return call


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run folder; a resumed run goes on in it.

    Args:
        folder: Run folder.
        resumed_step: Optimiser step of the checkpoint that is resumed from: the rows from that step on, which
            were logged after the checkpoint, are dropped. None starts a new file.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        # Flushed at every row, so that a killed process loses none that its checkpoint counts on.
        super().__init__(save_dir=folder, name="", version="", flush_logs_every_n_steps=1)
        self._resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Writer of the file."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.save_dir, self._resumed_step)
        return self._experiment  # type: ignore[return-value]

    # The configuration is in config.yaml already.
    log_hyperparams = rank_zero_only(lambda self, params=None: None)
    log_metrics = _forgiving(CSVLogger.log_metrics)
    save = _forgiving(CSVLogger.save)
    finalize = _forgiving(CSVLogger.finalize)


class _AppendingWriter(ExperimentWriter):
    def __init__(self, folder: str, resumed_step: int | None) -> None:
        self._resumed_step = resumed_step
        super().__init__(folder)

    def _check_log_dir_exists(self) -> None:
        """Take over the rows before the resumed step, where Lightning's writer deletes the file."""
        path = Path(self.metrics_file_path)
        if self._resumed_step is None or not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            # A process killed while it wrote leaves a last row without its later columns.
            rows = [row for row in reader if row["step"] and int(row["step"]) < self._resumed_step]
            self.metrics_keys = list(reader.fieldnames or [])
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(path)


class ResilientWandb(WandbLogger):
    """WandbLogger whose failures do not stop the run."""

    log_metrics = _forgiving(WandbLogger.log_metrics)
    log_hyperparams = _forgiving(WandbLogger.log_hyperparams)
    log_image = _forgiving(WandbLogger.log_image)
    log_table = _forgiving(WandbLogger.log_table)
    after_save_checkpoint = _forgiving(WandbLogger.after_save_checkpoint)
    save = _forgiving(WandbLogger.save)
    finalize = _forgiving(WandbLogger.finalize)

    @_forgiving
    def finish(self) -> None:
        """End the run."""
        self.experiment.finish()


def _build_wandb(folder: RunFolder, options: WandbOptions) -> WandbLogger | None:
    mode, why = _resolve_mode(options.mode)
    if mode == "disabled":
        return None
    run_id = _kept_run_id(folder.path / "wandb" / "run-id")
    if mode == "online":
        try:
            logger = _start_wandb(folder, options.project, run_id, offline=False)
            print(f"W&B: online at {logger.experiment.url}")
            return logger
        except Exception as error:  # no network, a revoked key: the run goes on
            why = f"going online failed: {str(error).partition(chr(10))[0][:100]}"
    try:
        logger = _start_wandb(folder, options.project, run_id, offline=True)
    except Exception as error:
        print(f"W&B: off ({error})")
        return None
    print(f"W&B: offline ({why}); upload later with: wandb sync {folder.path / 'wandb'}/offline-run-*")
    return logger


def _start_wandb(folder: RunFolder, project: str, run_id: str, offline: bool) -> ResilientWandb:
    import wandb

    run = wandb.init(
        name=folder.path.name,
        dir=folder.path,
        project=project,
        group=folder.path.parent.name,
        id=run_id,
        resume="allow",
        mode="offline" if offline else "online",
        settings=wandb.Settings(init_timeout=_INIT_TIMEOUT_SECONDS, console="off", silent=True),
    )
    # As WandbLogger does for the runs that it starts itself.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return ResilientWandb(experiment=run, save_dir=folder.path, offline=offline)


def _resolve_mode(mode: WandbMode) -> tuple[str, str]:
    """The mode to use and the reason for it; asks neither the network nor the user."""
    if mode != "auto":
        return mode, f"--wandb.mode {mode}"
    from_environment = os.environ.get("WANDB_MODE", "")
    if from_environment in ("online", "offline", "disabled"):
        return from_environment, f"WANDB_MODE={from_environment}"
    try:
        import wandb

        found = bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
    except Exception:
        found = False
    return ("online", "a key is at hand") if found else ("offline", "no API key")


def _kept_run_id(path: Path) -> str:
    """The W&B run id of this run folder, made at the first start so that a resumed run continues it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()
