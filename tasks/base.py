"""What the modules of all tasks share: optimiser, schedule, reproducible epochs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from exemplar_norm import sync_norm
from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.switch import SparseSwitchNorm
from tasks.callbacks import PredictionsCSV
from tasks.errors import UserError
from tasks.loggers.panels import Panel
from tasks.optim import (
    OptimizerName,
    Schedule,
    ScheduleName,
    build_optimizer,
    build_scheduler,
    parameter_groups,
)
from tasks.report import Section
from tasks.samplers import seed_for
from tasks.sparsity import SparsitySchedule

GATE_RATES = "gate_rates"
"""Entry of a checkpoint: the factor on the gradients of each exemplar layer's FC₂."""


class BaseModule(pl.LightningModule):
    """A LightningModule with the optimiser, the per-step schedule and the parameter groups of all tasks.

    Args:
        optimizer: "sgd" or "adamw".
        lr: Peak learning rate.
        momentum: SGD's momentum; the first beta of AdamW.
        nesterov: Nesterov momentum (SGD).
        lr_batch: Global batch size that `lr` is meant for: the rate is scaled by global batch / `lr_batch`
            (Goyal et al., arXiv:1706.02677). None takes `lr` as it is.
        weight_decay: Decay of weights.
        norm_weight_decay: Decay of normalizer and gate parameters.
        bias_weight_decay: Decay of biases.
        mixture_lr: Factor on the learning rate of SSN's mixture weights, which never decay.
        schedule: Shape of the learning rate over the run.
        warmup_epochs: Length of the linear warm-up, in epochs (fractions allowed).
        milestones: Epochs at which the "step" schedule multiplies the rate by `lr_gamma`.
        lr_gamma: Factor of the "step" schedule, and of the "exponential" one after each epoch.
        poly_power: Exponent of the "poly" schedule.
        min_lr: Learning rate at the end of the "cosine" and "poly" schedules; scaled as `lr` is.
        sync: Whether batch statistics, of whatever normalizer has them, span all processes.
        channels_last: Whether the network computes in the channels_last memory format.
        compile: Whether the network is compiled by `torch.compile`.
    """

    network: nn.Module
    """What is trained; set by the subclass."""
    output_folder: Path | None = None
    """Folder of the run, for files beside its checkpoints; None where there is none."""
    flops_per_batch: int | None = None
    """For Lightning's ThroughputMonitor, which counts no operations where this is None."""
    resumes_within_epoch: ClassVar[bool] = False
    """Whether training can go on in the middle of an epoch: nothing is kept from its beginning to its end."""
    monitor: ClassVar[str] = "val/loss"
    monitor_mode: ClassVar[str] = "min"
    architecture: ClassVar[tuple[str, ...]] = ("network", "num_classes", "norm", "norm_options")
    """Hyper-parameters that a checkpoint has to share."""

    def __init__(
        self,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        lr_batch: int | None = None,
        weight_decay: float = 1e-4,
        norm_weight_decay: float = 0.0,
        bias_weight_decay: float = 0.0,
        mixture_lr: float = 0.1,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 0.0,
        milestones: list[float] | None = None,
        lr_gamma: float = 0.1,
        poly_power: float = 0.9,
        min_lr: float = 0.0,
        sync: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # Plain values only, so that checkpoints load with weights_only=True.
        self.save_hyperparameters()
        _check(lr > 0, "lr", "a positive number", lr)
        _check(0 <= momentum < 1, "momentum", "a number in [0, 1)", momentum)
        _check(not nesterov or momentum > 0, "nesterov", "a positive momentum beside it", momentum)
        _check(weight_decay >= 0, "weight_decay", "a number ≥ 0", weight_decay)
        _check(norm_weight_decay >= 0, "norm_weight_decay", "a number ≥ 0", norm_weight_decay)
        _check(bias_weight_decay >= 0, "bias_weight_decay", "a number ≥ 0", bias_weight_decay)
        _check(lr_batch is None or lr_batch > 0, "lr_batch", "a positive number or null", lr_batch)
        _check(mixture_lr >= 0, "mixture_lr", "a number ≥ 0", mixture_lr)
        _check(warmup_epochs >= 0, "warmup_epochs", "a number ≥ 0", warmup_epochs)
        _check(0 <= min_lr <= lr, "min_lr", f"a number between 0 and lr ({lr})", min_lr)
        self.optimizer_name, self.lr, self.momentum, self.nesterov = optimizer, lr, momentum, nesterov
        self._lr_when_built: tuple[float, float] | None = None  # as given, and as it came out
        self.lr_batch, self.mixture_lr = lr_batch, mixture_lr
        self.decay = {
            "weights": weight_decay,
            "normalizers": norm_weight_decay,
            "biases": bias_weight_decay,
        }
        self.sync, self.channels_last, self.compile_network = sync, channels_last, compile
        self.schedule_name, self.warmup_epochs, self.milestones = schedule, warmup_epochs, milestones or []
        self.lr_gamma, self.poly_power, self.min_lr = lr_gamma, poly_power, min_lr

    def setup(self, stage: str) -> None:
        """Span batch statistics over the processes where that is asked for."""
        if self.sync and self._has_batch_statistics():
            # On the device of the run already, as the choice of the synchronised layer depends on it.
            sync_norm(self.to(self.trainer.strategy.root_device))
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.compile_network:
            self.network.compile()  # in place: the names of the parameters stay

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how fast the gates learn: of a network that was converted from trained weights, slowly.

        A resumed run is built without those weights, so that only the checkpoint tells.
        """
        checkpoint[GATE_RATES] = {name: layer.gate.rate for name, layer in self._exemplar_layers()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the gates learn as fast as in the run that is resumed."""
        rates = checkpoint.get(GATE_RATES, {})
        for name, layer in self._exemplar_layers():
            layer.gate.rate = rates.get(name, layer.gate.rate)

    def _exemplar_layers(self) -> list[tuple[str, ExemplarNorm]]:
        return [(name, module) for name, module in self.named_modules() if isinstance(module, ExemplarNorm)]

    def configure_callbacks(self) -> list[Callback]:
        """SSN's schedule, where the network has such layers."""
        return [SparsitySchedule()] if any(isinstance(m, SparseSwitchNorm) for m in self.modules()) else []

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimiser over the parameter groups, and its schedule stepped at every optimiser step."""
        lr = self._scaled_lr()
        self._lr_when_built = self.lr, lr
        optimizer = build_optimizer(
            self.optimizer_name, self.parameter_groups(lr), momentum=self.momentum, nesterov=self.nesterov
        )
        scheduler = build_scheduler(optimizer, self.schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimiser trains, at the peak learning rate `lr`."""
        return parameter_groups(self, lr, self.decay, self.mixture_lr)

    def _scaled_lr(self) -> float:
        """The learning rate for this run's global batch; both are said once."""
        trainer = self.trainer
        images = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        accumulated = trainer.accumulate_grad_batches
        batch = images * trainer.world_size * accumulated
        lr: float = self.lr if self.lr_batch is None else self.lr * batch / self.lr_batch
        if trainer.is_global_zero:
            scaled = "" if self.lr_batch is None else f" = {self.lr:g} × {batch}/{self.lr_batch}"
            nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
            print(
                f"learning rate {lr:g}{scaled}: global batch {batch} = {images} images × "
                f"{trainer.world_size} processes{nodes} × {accumulated} accumulated{self._told_sync()}",
                flush=True,
            )
        return lr

    def _told_sync(self) -> str:
        """Whose samples the batch statistics are of, where that is a question."""
        if self.trainer.world_size == 1 or not self._has_batch_statistics():
            return ""
        return f"; batch statistics {'over all processes' if self.sync else 'of each process alone'}"

    def _has_batch_statistics(self) -> bool:
        return any(name.endswith("running_mean") for name, _ in self.named_buffers())

    def schedule(self) -> Schedule:
        """The schedule over this run's steps."""
        total = self.trainer.estimated_stepping_batches
        epochs = self.trainer.max_epochs or 0
        if total == float("inf"):
            raise UserError("trainer: expected max_epochs or max_steps, got a run without end")
        # A run bounded by max_steps has no known number of epochs: take the loader's length.
        self.trainer.fit_loop.setup_data()
        per_epoch = total / epochs if epochs > 0 else float(self.trainer.num_training_batches)
        return Schedule(
            name=self.schedule_name,
            total=int(total),
            warmup=round(self.warmup_epochs * per_epoch),
            milestones=[round(epoch * per_epoch) for epoch in self.milestones],
            epoch=max(round(per_epoch), 1),
            gamma=self.lr_gamma,
            power=self.poly_power,
            floor=self.min_lr / self.lr,
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed from (seed, epoch, batch, rank), so that dropout and mixing in a resumed run draw the same.

        At each batch, as what starts a loader's workers draws from the same generator, at its own times.
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        torch.manual_seed(seed_for(seed, self.current_epoch, batch_idx, self.global_rank))

    def on_train_start(self) -> None:
        """Follow a learning rate that was set since the optimiser was built, by Lightning's finder.

        It is a rate as it stands, of this global batch; the schedule and the groups' factors stay.
        """
        given, used = self._lr_when_built or (self.lr, self.lr)
        if self.lr == given:
            return
        schedulers: Any = self.lr_schedulers()
        schedulers.base_lrs = [rate * self.lr / used for rate in schedulers.base_lrs]
        for group, base in zip(schedulers.optimizer.param_groups, schedulers.base_lrs, strict=True):
            group["initial_lr"] = base
            group["lr"] = base * schedulers.lr_lambdas[0](self.trainer.global_step)

    def prediction_writer(self, folder: Path) -> Callback:
        """The callback that writes predictions into `folder`."""
        return PredictionsCSV(folder / "predictions.csv")

    def outcome_rows(self) -> dict[str, str]:
        """What the task adds to the table at the end of a fit."""
        return {}

    def report_sections(self, data: Any) -> list[Section]:
        """What the task adds to the report of a run."""
        return []

    def panels(self, data: Any) -> dict[str, Panel]:
        """What the task adds to W&B."""
        return {}

    def log_learning_rate(self) -> None:
        """Log the first group's learning rate of this step."""
        optimizer: Any = self.optimizers()
        self.log("train/lr", optimizer.param_groups[0]["lr"])


def _check(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise ValueError(f"model.{name}: expected {expected}, got {got}")
