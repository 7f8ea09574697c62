"""Loggers of a run: metrics.csv that survives a resume, W&B that never stops a run, TensorBoard on demand."""

from __future__ import annotations

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import DummyLogger

from tasks.loggers.metrics_csv import MetricsCSV
from tasks.loggers.record import RunRecord
from tasks.loggers.tensorboard import ResilientTensorBoard
from tasks.loggers.wandb_run import ResilientWandb, WandbOptions, start_wandb
from tasks.run_folder import RunFolder

__all__ = ["MetricsCSV", "ResilientWandb", "RunRecord", "WandbOptions", "build_loggers", "close_loggers"]


def build_loggers(
    folder: RunFolder | None, wandb: WandbOptions, resumed_step: int | None, tensorboard: bool = False
) -> list[Logger]:
    """The loggers of a run; ranks other than 0 have no folder and get one that does nothing.

    Args:
        folder: Run folder.
        wandb: Weights & Biases.
        resumed_step: Optimiser step of the checkpoint that is resumed from; None for a new run.
        tensorboard: Whether TensorBoard's events are written as well.
    """
    if folder is None:
        return [DummyLogger()]
    loggers: list[Logger | None] = [MetricsCSV(folder.path, resumed_step), start_wandb(folder, wandb)]
    if tensorboard:
        loggers.append(ResilientTensorBoard(folder.path, resumed_step))
    return [logger for logger in loggers if logger]


def close_loggers(loggers: list[Logger]) -> None:
    """Finish the W&B run, so that a later one in the same process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, ResilientWandb):
            logger.finish()
