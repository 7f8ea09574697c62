"""TensorBoard's events in the run folder."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger

from tasks.loggers.forgiving import forgiving


class ResilientTensorBoard(TensorBoardLogger):
    """TensorBoardLogger in `tensorboard` in the run folder, whose failures do not stop the run.

    Args:
        folder: Run folder.
        resumed_step: Optimiser step that a resumed run goes on from: TensorBoard hides what was logged from
            that step on. None for a new run.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__(
            save_dir=folder, name="tensorboard", version="", default_hp_metric=False, purge_step=resumed_step
        )

    log_metrics = forgiving(TensorBoardLogger.log_metrics)
    log_hyperparams = forgiving(TensorBoardLogger.log_hyperparams)
    save = forgiving(TensorBoardLogger.save)
    finalize = forgiving(TensorBoardLogger.finalize)
