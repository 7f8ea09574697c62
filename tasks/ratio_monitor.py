"""Follow the mixtures of EN, SN and SSN layers during training."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from tasks.ratios.layers import GateRows, exemplar_layers, is_compiled, switch_layers
from tasks.ratios.survey import LayerRatios, RatioSurvey, static_ratios
from tasks.ratios.table import Epoch, append_ratios, trim_ratios, write_by_class


class RatioMonitor(Callback):
    """Write `ratios.csv` and `ratios_by_class.csv`, and log each layer's mean ratios after every validation.

    Validation is followed in full, exactly on any number of processes; of training, every
    `log_every_n_steps`-th batch. Nothing is computed twice: hooks read what the gates return, between the
    batches that are followed there are none. A compiled network is followed in validation alone, which then
    runs uncompiled: a compiled graph does not call hooks. SN's and SSN's mixtures are read off their weights.

    The loggers get one scalar a layer and normalizer each time, but for CSV loggers, where they would be
    hundreds of columns. A network without such layers costs nothing.

    Args:
        folder: Run folder; None on ranks other than 0, which count but do not write.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._surveys: dict[str, RatioSurvey] = {}
        self._gates = GateRows({})
        self._open = ExitStack()
        self._is_compiled = self._has_layers = self._told = False

    # --- the run

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers."""
        layers = exemplar_layers(pl_module)
        self._gates = GateRows(layers)
        self._has_layers = bool(layers or switch_layers(pl_module))
        self._is_compiled = bool(layers) and is_compiled(pl_module)
        data: Any = getattr(trainer, "datamodule", None)
        classes = {"train": 0, "val": getattr(data, "num_classes", 0) or 0}
        self._surveys = {
            split: RatioSurvey(layers, count, pl_module.device) for split, count in classes.items()
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop what was written after the checkpoint that is resumed from."""
        if self.folder and self._has_layers:
            trim_ratios(self.folder, trainer.global_step)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the network as it was."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the network as it was."""
        self._stop()

    # --- training: a batch now and then

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's statistics."""
        self._surveys["train"].reset()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Read the gates in this batch, if it is one of those that are followed."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._surveys["train"].names and not self._is_compiled and every and batch_idx % every == 0:
            self._gates.attach()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in what was read."""
        rows = self._gates.take()
        if rows:
            self._surveys["train"].update(rows)
            self._gates.detach()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's rows, before its checkpoint."""
        if self._surveys["train"].names and not self._is_compiled:
            self._write(trainer, "train", self._surveys["train"].finish())

    # --- validation: every sample

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the statistics of this validation."""
        if self._follows_validation(trainer) and self._surveys["val"].names:
            self._surveys["val"].reset()
            if self._is_compiled:
                self._open.enter_context(torch.compiler.set_stance("force_eager"))
            self._gates.attach()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch, by class where each sample has one."""
        rows = self._gates.take()
        if rows:
            self._surveys["val"].update(rows, labels_of(batch))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and log the mixtures."""
        if not self._follows_validation(trainer):
            return
        self._stop()
        layers = [*self._surveys["val"].finish(), *static_ratios(pl_module)]
        self._write(trainer, "val", layers)
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_metrics(scalars(layers), step=_last_step(trainer))

    def _follows_validation(self, trainer: pl.Trainer) -> bool:
        return self._has_layers and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _stop(self) -> None:
        self._gates.detach()
        self._open.close()

    def _write(self, trainer: pl.Trainer, split: str, layers: list[LayerRatios]) -> None:
        if self.folder is None or not layers:
            return
        when = Epoch(trainer.current_epoch, _last_step(trainer), split, layers)
        try:
            append_ratios(self.folder, when)
            if any(layer.class_mean is not None for layer in layers):
                data: Any = trainer.datamodule  # type: ignore[attr-defined]
                names = [data.class_name(label) for label in range(data.num_classes)]
                write_by_class(self.folder, trainer.current_epoch, layers, names)
        except OSError as error:  # a full disk is no reason to stop training
            if not self._told:
                self._told = True
                rank_zero_warn(f"ratios.csv cannot be written, training goes on without it: {error!r}")


def _last_step(trainer: pl.Trainer) -> int:
    """The step of the last batch, from 0: that of Lightning's own rows."""
    return max(trainer.global_step - 1, 0)


def labels_of(batch: Any) -> Tensor | None:
    """The class (N) of each sample of a batch (inputs, targets, …); None where its targets are no classes."""
    targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    is_classes = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    return targets if is_classes else None


def scalars(layers: list[LayerRatios]) -> dict[str, float]:
    """`ratios/<layer>/<normalizer>`, with "_mean" and "_variance" behind it for the two mixtures of SN."""
    return {
        f"ratios/{layer.layer}/{normalizer}{'' if layer.mixture == 'both' else f'_{layer.mixture}'}": float(
            mean
        )
        for layer in layers
        for normalizer, mean in zip(layer.normalizers, layer.mean, strict=True)
    }
