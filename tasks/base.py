"""What the modules of all tasks share: optimiser, schedule, reproducible epochs."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig

from exemplar_norm import sync_norm
from exemplar_norm.switch import SparseSwitchNorm
from tasks.data import seed_for
from tasks.optim import (
    OptimizerName,
    Schedule,
    ScheduleName,
    build_optimizer,
    build_scheduler,
    parameter_groups,
)
from tasks.sparsity import SparsitySchedule


class BaseModule(pl.LightningModule):
    """A LightningModule with the optimiser, the per-step schedule and the parameter groups of all tasks.

    Args:
        optimizer: "sgd" or "adamw".
        lr: Peak learning rate.
        momentum: SGD's momentum; the first beta of AdamW.
        nesterov: Nesterov momentum (SGD).
        weight_decay: Decay of weights; biases have none.
        norm_weight_decay: Decay of normalizer and gate parameters.
        mixture_lr: Factor on the learning rate of SSN's mixture weights, which never decay.
        schedule: Shape of the learning rate over the run.
        warmup_epochs: Length of the linear warm-up, in epochs (fractions allowed).
        milestones: Epochs at which the "step" schedule multiplies the rate by `lr_gamma`.
        lr_gamma: Factor of the "step" schedule.
        poly_power: Exponent of the "poly" schedule.
        min_lr: Learning rate at the end of the "cosine" and "poly" schedules.
        sync: Whether batch statistics, of whatever normalizer has them, span all processes.
    """

    monitor: ClassVar[str] = "val/loss"
    monitor_mode: ClassVar[str] = "min"

    def __init__(
        self,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        norm_weight_decay: float = 0.0,
        mixture_lr: float = 0.1,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 0.0,
        milestones: list[float] | None = None,
        lr_gamma: float = 0.1,
        poly_power: float = 0.9,
        min_lr: float = 0.0,
        sync: bool = False,
    ) -> None:
        super().__init__()
        # Plain values only, so that checkpoints load with weights_only=True.
        self.save_hyperparameters()
        _check(lr > 0, "lr", "a positive number", lr)
        _check(0 <= momentum < 1, "momentum", "a number in [0, 1)", momentum)
        _check(not nesterov or momentum > 0, "nesterov", "a positive momentum beside it", momentum)
        _check(weight_decay >= 0, "weight_decay", "a number ≥ 0", weight_decay)
        _check(norm_weight_decay >= 0, "norm_weight_decay", "a number ≥ 0", norm_weight_decay)
        _check(mixture_lr >= 0, "mixture_lr", "a number ≥ 0", mixture_lr)
        _check(warmup_epochs >= 0, "warmup_epochs", "a number ≥ 0", warmup_epochs)
        _check(0 <= min_lr <= lr, "min_lr", f"a number between 0 and lr ({lr})", min_lr)
        self.optimizer_name, self.lr, self.momentum, self.nesterov = optimizer, lr, momentum, nesterov
        self.weight_decay, self.norm_weight_decay, self.mixture_lr = (
            weight_decay,
            norm_weight_decay,
            mixture_lr,
        )
        self.sync = sync
        self.schedule_name, self.warmup_epochs, self.milestones = schedule, warmup_epochs, milestones or []
        self.lr_gamma, self.poly_power, self.min_lr = lr_gamma, poly_power, min_lr

    def setup(self, stage: str) -> None:
        """Span batch statistics over the processes where that is asked for."""
        if self.sync and any(name.endswith("running_mean") for name, _ in self.named_buffers()):
            # On the device of the run already, as the choice of the synchronised layer depends on it.
            sync_norm(self.to(self.trainer.strategy.root_device))

    def configure_callbacks(self) -> list[Callback]:
        """SSN's schedule, where the network has such layers."""
        return [SparsitySchedule()] if any(isinstance(m, SparseSwitchNorm) for m in self.modules()) else []

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimiser over the parameter groups, and its schedule stepped at every optimiser step."""
        groups = parameter_groups(self, self.lr, self.weight_decay, self.norm_weight_decay, self.mixture_lr)
        optimizer = build_optimizer(
            self.optimizer_name, groups, momentum=self.momentum, nesterov=self.nesterov
        )
        scheduler = build_scheduler(optimizer, self.schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def schedule(self) -> Schedule:
        """The schedule over this run's steps."""
        total = self.trainer.estimated_stepping_batches
        epochs = self.trainer.max_epochs or 0
        if total == float("inf"):
            raise ValueError(
                "expected trainer.max_epochs or trainer.max_steps to be set, got a run without end"
            )
        # A run bounded by max_steps has no known number of epochs: take the loader's length.
        per_epoch = total / epochs if epochs > 0 else float(self.trainer.num_training_batches)
        return Schedule(
            name=self.schedule_name,
            total=int(total),
            warmup=round(self.warmup_epochs * per_epoch),
            milestones=[round(epoch * per_epoch) for epoch in self.milestones],
            gamma=self.lr_gamma,
            power=self.poly_power,
            floor=self.min_lr / self.lr,
        )

    def on_train_epoch_start(self) -> None:
        """Seed from (seed, epoch, rank), so that dropout in a resumed run draws what it would have drawn."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        torch.manual_seed(seed_for(seed, self.current_epoch, self.global_rank))

    def log_learning_rate(self) -> None:
        """Log the first group's learning rate of this step."""
        optimizer: Any = self.optimizers()
        self.log("train/lr", optimizer.param_groups[0]["lr"])


def _check(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise ValueError(f"model.{name}: expected {expected}, got {got}")
