"""What every loss for noisy labels has in common: one value a sample.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


class SampleLoss(nn.Module, ABC):
    """(logits (N, C), targets, indices (N)) ↦ losses (N).

    The mean is left to the caller, so that the loss of each sample can be recorded. Targets are class indices
    (N) or, where `soft` says so, probabilities q (N, C), whose loss is the expected one, Σ_c q_c · loss(c).
    All is computed in float32 or better, whatever the precision of the logits.
    """

    soft: ClassVar[bool] = True
    """Whether targets may be probabilities."""
    remembers: ClassVar[bool] = False
    """Whether `remember` has to be called in each training step, before the loss."""

    def __init__(self) -> None:
        # Without the arguments of nn.Module's, which takes any.
        super().__init__()

    def forward(self, logits_NC: Tensor, targets: Tensor, indices_N: Tensor | None = None) -> Tensor:
        """Losses (N) of a batch.

        Args:
            logits_NC: Outputs of the network.
            targets: Class indices (N), or probabilities (N, C).
            indices_N: Numbers of the samples in the training set; only losses with a memory need them.

        Raises:
            ValueError: The shapes do not fit, or probabilities came where class indices are needed.
        """
        if logits_NC.ndim != 2:
            raise ValueError(f"logits: expected a shape (N, C), got {tuple(logits_NC.shape)}")
        is_soft = targets.is_floating_point()
        if is_soft and not self.soft:
            name = type(self).__name__
            raise ValueError(
                f"targets of {name}: expected class indices (N), got probabilities (use mixed_loss)"
            )
        expected = logits_NC.shape if is_soft else logits_NC.shape[:1]
        if targets.shape != expected:
            kind = "probabilities" if is_soft else "class indices"
            raise ValueError(f"targets: expected {kind} {tuple(expected)}, got {tuple(targets.shape)}")
        return self.losses(log_probabilities(logits_NC), targets, indices_N)

    @abstractmethod
    def losses(self, log_p_NC: Tensor, targets: Tensor, indices_N: Tensor | None) -> Tensor:
        """Losses (N) from log-probabilities."""

    def remember(self, logits_NC: Tensor, indices_N: Tensor) -> None:
        """Take in the predictions of a training step; most losses keep nothing."""


class LabelLoss(SampleLoss):
    """A loss that depends on the prediction and the label alone."""

    @abstractmethod
    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss (N, C) of each sample if its label were c."""

    def losses(self, log_p_NC: Tensor, targets: Tensor, indices_N: Tensor | None) -> Tensor:
        """The losses (N) of the labels, or the expected ones."""
        loss_NC = self.per_label(log_p_NC)
        if targets.is_floating_point():
            return (targets.to(loss_NC.dtype) * loss_NC).sum(dim=1)
        return loss_NC.gather(1, targets.long()[:, None])[:, 0]


def log_probabilities(logits_NC: Tensor) -> Tensor:
    """Log-softmax over the classes, in float32 or better."""
    return torch.log_softmax(logits_NC.to(torch.promote_types(logits_NC.dtype, torch.float32)), dim=1)


def check_number(
    name: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raise a ValueError for a value outside of [low, high], or of (low, high] with `open_low`."""
    if not (low < value if open_low else low <= value) or not value <= high:
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: expected a number in {bracket}{low:g}, {high:g}], got {value}")
