"""Follow the mixtures of EN, SN and SSN layers during training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from tasks.ratios import dying
from tasks.ratios.by_sample import SampleKeeper, trim_by_sample, write_by_sample
from tasks.ratios.dying import Dying, OutputDeviations, scaling_layers
from tasks.ratios.layers import GateRows, exemplar_layers, is_compiled, switch_layers
from tasks.ratios.survey import LayerRatios, RatioSurvey, is_static, static_in_words, static_ratios
from tasks.ratios.table import Epoch, append_by_class, append_dying, append_ratios, trim_tables


class RatioMonitor(Callback):
    """Write `ratios.csv` and its neighbours, and log each layer's mean ratios after every validation.

    Validation is followed in full, exactly on any number of processes; of training, every
    `log_every_n_steps`-th batch. Nothing is computed twice: hooks read what the gates return, between the
    batches that are followed there are none. A compiled network is followed in validation alone, which then
    runs uncompiled: a compiled graph does not call hooks. SN's and SSN's mixtures are read off their weights.
    λ of at most 2,000 validation samples is kept as it was last, in `ratios_by_sample.npz`.

    It warns once of each layer whose output dies: in the batches that are followed and the last of an epoch
    (of a compiled network, in the first of a validation) the deviation of the output is compared with that at
    the start of the run. At the end it says where λ is the same for all samples.

    The loggers get one scalar a layer and normalizer each time, but for CSV loggers, where they would be
    hundreds of columns. A network without such layers costs nothing.

    Args:
        folder: Run folder; None on ranks other than 0, which count but do not write.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._surveys: dict[str, RatioSurvey] = {}
        self._gates = GateRows({})
        self._outputs = OutputDeviations({})
        self._samples = SampleKeeper({})
        self._open = ExitStack()
        self._is_compiled = self._has_layers = self._told = False
        self._before: dict[str, float] = {}  # deviations of outputs at the start of the run
        self._after: dict[str, float] = {}
        self._dying: set[str] = set()
        self._last: list[LayerRatios] = []

    # --- the run

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew; what a checkpoint knows comes after this."""
        if stage == "fit":
            self._before, self._dying, self._last = {}, set(), []

    def state_dict(self) -> dict[str, Any]:
        """How the outputs were at the start of the run, and which layers were warned of."""
        return {"before": self._before, "dying": sorted(self._dying)} if self._before else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from these."""
        self._before, self._dying = dict(state_dict["before"]), set(state_dict["dying"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers."""
        layers = exemplar_layers(pl_module)
        self._gates = GateRows(layers)
        self._outputs = OutputDeviations(scaling_layers(pl_module))
        self._samples = SampleKeeper({name: tuple(layer.normalizers) for name, layer in layers.items()})
        self._has_layers = bool(layers or switch_layers(pl_module))
        self._is_compiled = bool(layers or self._outputs.layers) and is_compiled(pl_module)
        data: Any = getattr(trainer, "datamodule", None)
        classes = {"train": 0, "val": getattr(data, "num_classes", 0) or 0}
        self._surveys = {
            split: RatioSurvey(layers, count, pl_module.device) for split, count in classes.items()
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop what was written after the checkpoint that is resumed from."""
        if self.folder and (self._has_layers or self._outputs.layers):
            trim_tables(self.folder, trainer.global_step)
            trim_by_sample(self.folder, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where λ is the same for all samples after all epochs."""
        if is_static(self._last) and trainer.is_global_zero:
            exemplar = [layer for layer in self._last if layer.kind == "en"]
            print(f"ratios: {static_in_words(exemplar)}", flush=True)

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
        """Read gates and outputs in this batch, if it is one of those that are followed."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._is_compiled or not every:
            return
        is_followed = batch_idx % every == 0
        if self._surveys["train"].names and is_followed:
            self._gates.attach()
        if self._outputs.layers and (is_followed or trainer.is_last_batch):
            self._outputs.attach()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in what was read."""
        rows = self._gates.take()
        if rows:
            self._surveys["train"].update(rows)
            self._gates.detach()
        self._take_outputs()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's rows, before its checkpoint."""
        if self._surveys["train"].names and not self._is_compiled:
            self._write(trainer, "train", self._surveys["train"].finish())
        self._warn_of_dying(trainer)

    # --- outputs

    def _take_outputs(self) -> None:
        self._outputs.detach()
        found = self._outputs.take()
        if not found:
            return
        self._after.update(found)
        # Those that begin at 0, as the last γ of a residual block may, have nothing to fall from.
        self._before = {name: value for name, value in found.items() if value > 0} | self._before

    def _warn_of_dying(self, trainer: pl.Trainer) -> None:
        when = (trainer.current_epoch, _last_step(trainer))
        found = [
            Dying(*when, name, self._before[name], after)
            for name, after in self._after.items()
            if name in self._before and name not in self._dying and after < dying.SHARE * self._before[name]
        ]
        self._after = {}
        if not found:
            return
        self._dying |= {one.layer for one in found}
        rank_zero_warn(f"epoch {trainer.current_epoch + 1}: {dying.in_words(found)}")
        if self.folder:
            self._try(lambda folder: append_dying(folder, found))

    # --- validation: every sample

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the statistics of this validation."""
        if not self._is_followed(trainer):
            return
        if self._is_compiled:
            self._open.enter_context(torch.compiler.set_stance("force_eager"))
            self._outputs.attach()
        if self._surveys["val"].names:
            self._surveys["val"].reset()
            self._samples.reset()
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
            labels = labels_of(batch)
            self._surveys["val"].update(rows, labels)
            if dataloader_idx == 0:
                self._samples.add(rows, batch[2] if len(batch) > 2 else None, labels)
        if self._is_compiled and batch_idx == dataloader_idx == 0 and self._is_followed(trainer):
            self._take_outputs()
            if not self._surveys["val"].names:  # there is nothing else to read: the rest runs compiled
                self._open.close()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and log the mixtures."""
        if not self._is_followed(trainer):
            return
        self._stop()
        if not self._has_layers:
            return
        layers = [*self._surveys["val"].finish(), *static_ratios(pl_module)]
        self._last = layers
        self._write(trainer, "val", layers)
        if self._surveys["val"].names:
            samples = self._samples.finish(trainer.current_epoch, _last_step(trainer))
            if samples is not None and self.folder:
                self._try(lambda folder: write_by_sample(folder, samples))
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_metrics(scalars(layers), step=_last_step(trainer))

    def _is_followed(self, trainer: pl.Trainer) -> bool:
        is_read = self._has_layers or (self._is_compiled and bool(self._outputs.layers))
        return is_read and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _stop(self) -> None:
        self._gates.detach()
        self._outputs.detach()
        self._open.close()

    def _write(self, trainer: pl.Trainer, split: str, layers: list[LayerRatios]) -> None:
        if self.folder is None or not layers:
            return
        when = Epoch(trainer.current_epoch, _last_step(trainer), split, layers)
        self._try(lambda folder: append_ratios(folder, when))
        if any(layer.class_mean is not None for layer in layers):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            names = [data.class_name(label) for label in range(data.num_classes)]
            self._try(lambda folder: append_by_class(folder, when, names))

    def _try(self, write: Callable[[Path], None]) -> None:
        if self.folder is None:
            return
        try:
            write(self.folder)
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
