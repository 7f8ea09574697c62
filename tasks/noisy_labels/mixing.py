"""Mixup on top of any loss.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.noisy_labels.sample_loss import SampleLoss


class Mixing(NamedTuple):
    """How a batch was mixed: sample n has the share λ, sample `partner_N[n]` the rest."""

    partner_N: Tensor
    share: float


def draw_share(alpha: float) -> float:
    """λ ~ Beta(α, α), from torch's generator.

    Raises:
        ValueError: α is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: expected a positive number, got {alpha}")
    return float(torch.distributions.Beta(alpha, alpha).sample())


def blend(rows: Tensor, mixing: Mixing) -> Tensor:
    """λ · rows + (1 − λ) · rows of the partners."""
    return mixing.share * rows + (1 - mixing.share) * rows[mixing.partner_N]


def mixup(images: Tensor, alpha: float) -> tuple[Tensor, Mixing]:
    """Blend each image with another of the batch: λ x + (1 − λ) x', one λ ~ Beta(α, α) a batch.

    Source: Zhang et al., arXiv:1710.09412.

    Raises:
        ValueError: α is not positive.
    """
    mixing = Mixing(torch.randperm(len(images), device=images.device), draw_share(alpha))
    return blend(images, mixing), mixing


def mixed_loss(
    loss: SampleLoss, logits_NC: Tensor, targets: Tensor, mixing: Mixing, indices_N: Tensor | None = None
) -> Tensor:
    """λ · loss(y) + (1 − λ) · loss(y') of each mixed sample (N).

    The same as the loss of the blended targets wherever targets may be probabilities, except that a loss with
    a memory, too, blends its terms of the two samples.
    """
    partner, share = mixing
    others = None if indices_N is None else indices_N[partner]
    own: Tensor = loss(logits_NC, targets, indices_N)
    other: Tensor = loss(logits_NC, targets[partner], others)
    return share * own + (1 - share) * other
