"""Callbacks that Lightning has no equivalent of."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter, Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import SaveConfigCallback

from tasks.ranks import gathered
from tasks.run_folder import RunFolder
from tasks.tables import write_predictions


def checkpoint_callbacks(folder: RunFolder | None, monitor: str, mode: str) -> list[Callback]:
    """Keep `best.ckpt` and `last.ckpt`, each written at the end of an epoch.

    Two callbacks, as `save_last` writes only when the best was written. The last comes second, so that it
    holds the best score so far.
    """
    common: dict[str, Any] = {
        "dirpath": folder.checkpoints if folder else None,  # rank 0 tells the others
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    return [
        BestCheckpoint(filename="best", monitor=monitor, mode=mode, **common),
        KeptCheckpoint(filename="last", **common),
    ]


class KeptCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that knows its files again in a run folder that was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, and its file by name in the folder of today."""
        if self.dirpath is None:
            return super().load_state_dict(state_dict)
        here = Path(self.dirpath)
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: str(here / Path(state_dict[key]).name) if state_dict[key] else "" for key in paths}
        best = {str(here / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class BestCheckpoint(KeptCheckpoint):
    """The best checkpoint; waits for the first validation, where not every epoch has one."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the checkpoint if it is the best."""
        has_validated = self.monitor in trainer.callback_metrics
        if has_validated or trainer.fit_loop.epoch_loop._should_check_val_epoch():
            super().on_train_epoch_end(trainer, pl_module)


def batch_size(batch: Any) -> int:
    """Images of a batch; what Lightning's ThroughputMonitor asks for as `batch_size_fn`."""
    return len(batch[0])


def progress_bar() -> Callback:
    """Lightning's rich progress bar on a terminal, one line an epoch elsewhere."""
    return RichProgressBar(leave=False) if sys.stdout.isatty() else EpochLines()


class EpochLines(Callback):
    """One line an epoch, for logs."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: in the middle of an epoch, its start does not come."""
        self.start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it anew."""
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the metrics of the epoch."""
        if not trainer.is_global_zero:
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/loss", "val/"))
        }
        told = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        seconds = time.perf_counter() - self.start
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {told}  ({seconds:.1f} s)", flush=True
        )


class SaveConfig(SaveConfigCallback):
    """Save the configuration into the run folder; a resumed run keeps the one it was started with."""

    # What belongs to one call rather than to the run, and to `fit` alone.
    one_call_only = ("resume", "test", "base")

    def __init__(self, *args: Any, folder: RunFolder | None = None, header: str = "", **kwargs: Any) -> None:
        kwargs["save_to_log_dir"] = False
        super().__init__(*args, **kwargs)
        self.folder, self.header = folder, header

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write `config.yaml` once."""
        if self.folder is None or self.folder.config.exists():
            return
        config = self.config.clone()
        for key in self.one_call_only:
            config.pop(key, None)
        text = self.parser.dump(config, skip_none=False, skip_validation=True)
        self.folder.config.write_text(f"# {self.header}\n{text}", encoding="utf-8")


class PredictionsCSV(BasePredictionWriter):
    """Write `predictions.csv` from the rows that `predict_step` returns.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Any,
        batch_indices: Any,
    ) -> None:
        """Gather the rows of all ranks and write one a sample, in the order of the samples."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows: list[tuple[int, int, float, int]] = []
        for batch in predictions:
            columns = [batch[name].tolist() for name in ("index", "predicted", "probability", "true")]
            rows += zip(*columns, strict=True)
        rows = gathered(rows)
        if not trainer.is_global_zero:
            return
        write_predictions(
            self.path,
            (
                (
                    data.sample_name("predict", index),
                    data.class_name(predicted),
                    probability,
                    data.class_name(true) if true >= 0 else "",
                )
                for index, predicted, probability, true in sorted(rows)
            ),
        )
