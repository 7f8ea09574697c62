"""Losses for noisy labels in closed form, and all losses by name.

Shapes: N samples, C classes. p = softmax(logits), y the given label.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from tasks.errors import UserError, close_matches
from tasks.noisy_labels.elr import EarlyLearning
from tasks.noisy_labels.sample_loss import LabelLoss, SampleLoss, check_number
from tasks.noisy_labels.transition import ForwardCorrection


class CrossEntropy(LabelLoss):
    """−log p_y."""

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss of each label."""
        return -log_p_NC


class LabelSmoothing(LabelLoss):
    """−(1 − ε) log p_y − ε/C · Σ_c log p_c (Szegedy et al., arXiv:1512.00567).

    Args:
        smoothing: ε, in [0, 1]; 0 is cross-entropy.
    """

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        check_number("smoothing", smoothing, 0, 1)
        self.smoothing = smoothing

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss of each label."""
        return -(1 - self.smoothing) * log_p_NC - self.smoothing * log_p_NC.mean(dim=1, keepdim=True)


class SoftBootstrapping(LabelLoss):
    """−Σ_c (β · 1[c = y] + (1 − β) p_c) log p_c (Reed et al., arXiv:1412.6596).

    The gradient flows through both p, as in the paper: 1 − β weighs an entropy.

    Args:
        beta: β, in [0, 1]; 1 is cross-entropy.
    """

    def __init__(self, beta: float = 0.95) -> None:
        super().__init__()
        check_number("beta", beta, 0, 1)
        self.beta = beta

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss of each label."""
        entropy = -(log_p_NC.exp() * log_p_NC).sum(dim=1, keepdim=True)
        return (1 - self.beta) * entropy - self.beta * log_p_NC


class GeneralizedCrossEntropy(LabelLoss):
    """(1 − p_y^q) / q (Zhang & Sabuncu, arXiv:1805.07836, without truncation).

    Args:
        q: q, in [0, 1]; 0 stands for the limit, cross-entropy, and 1 is half the mean absolute error.
    """

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        check_number("q", q, 0, 1)
        self.q = q

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss of each label."""
        # 1 − p^q loses all digits for small q · log p; expm1 keeps them.
        return -torch.expm1(self.q * log_p_NC) / self.q if self.q else -log_p_NC


class SymmetricCrossEntropy(LabelLoss):
    """α · (−log p_y) + β · (−A) (1 − p_y), cross-entropy and its reverse (Wang et al., arXiv:1908.06112).

    The reverse is −Σ_c p_c log 1[c = y] with log 0 = A.

    Args:
        alpha: α; 10 is the setting for WebVision.
        beta: β; 0 leaves α times cross-entropy.
        log_zero: A, negative.
    """

    def __init__(self, alpha: float = 10.0, beta: float = 1.0, log_zero: float = -4.0) -> None:
        super().__init__()
        _check_weights(alpha, beta, log_zero)
        self.alpha, self.beta, self.log_zero = alpha, beta, log_zero

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss of each label."""
        return -self.alpha * log_p_NC + self.beta * _reverse(log_p_NC, self.log_zero)


class NormalizedReverse(LabelLoss):
    """NCE+RCE: α · log p_y / Σ_c log p_c + β · (−A) (1 − p_y) (Ma et al., arXiv:2006.13554).

    The first term, active, lies in [0, 1]; the second, passive, is that of `SymmetricCrossEntropy`.

    Args:
        alpha: α; 50 is the authors' setting for WebVision, as is β.
        beta: β.
        log_zero: A, negative; ln 10⁻⁴ in the authors' code.
    """

    def __init__(self, alpha: float = 50.0, beta: float = 0.1, log_zero: float = math.log(1e-4)) -> None:
        super().__init__()
        _check_weights(alpha, beta, log_zero)
        self.alpha, self.beta, self.log_zero = alpha, beta, log_zero

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Loss of each label."""
        active = log_p_NC / log_p_NC.sum(dim=1, keepdim=True)
        return self.alpha * active + self.beta * _reverse(log_p_NC, self.log_zero)


def _reverse(log_p_NC: Tensor, log_zero: float) -> Tensor:
    return log_zero * torch.expm1(log_p_NC)


def _check_weights(alpha: float, beta: float, log_zero: float) -> None:
    check_number("alpha", alpha, 0)
    check_number("beta", beta, 0)
    if not log_zero < 0:
        raise ValueError(f"log_zero: expected a negative number, got {log_zero}")


LossName = Literal["ce", "label_smoothing", "bootstrapping", "gce", "sce", "nce_rce", "forward", "elr"]


class LossOptions(TypedDict, total=False):
    """Options of the losses; each takes its own subset."""

    smoothing: float
    alpha: float
    beta: float
    q: float
    log_zero: float
    transition: list[list[float]] | str | None
    strength: float
    memory: Literal["float32", "float16"]


LOSSES: dict[str, type[SampleLoss]] = {
    "ce": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "bootstrapping": SoftBootstrapping,
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "nce_rce": NormalizedReverse,
    "forward": ForwardCorrection,
    "elr": EarlyLearning,
}


def build_loss(
    name: str, *, num_classes: int, num_samples: int, options: LossOptions | None = None
) -> SampleLoss:
    """Build a loss by its name.

    Args:
        name: A key of `LOSSES`.
        num_classes: Number of classes.
        num_samples: Size of the training set.
        options: Options of that loss.

    Raises:
        UserError: The name is unknown, or an option does not belong to the loss or is out of its range.
    """
    if name not in LOSSES:
        raise UserError(
            f"model.loss: unknown loss {name!r}{close_matches(name, LOSSES)}: expected {', '.join(LOSSES)}"
        )
    sizes = {"num_classes": num_classes, "num_samples": num_samples}
    arguments = inspect.signature(LOSSES[name]).parameters
    allowed = [key for key in arguments if key not in sizes]
    given: dict[str, Any] = {**(options or {})}
    for option in given:
        if option not in allowed:
            expected = f"one of {', '.join(allowed)}" if allowed else "no options"
            raise UserError(f"model.loss_options: loss {name!r}: expected {expected}, got {option!r}")
    try:
        return LOSSES[name](**{key: size for key, size in sizes.items() if key in arguments}, **given)
    except ValueError as error:
        raise UserError(f"model.loss_options for loss {name!r}: {error}") from error
