"""Co-teaching: two networks that choose each other's training samples by their loss.

Source: Han et al., arXiv:1804.06872. N samples of a batch.
"""

from __future__ import annotations

import math

from torch import Tensor

from tasks.noisy_labels.sample_loss import check_number


def remember_rate(epoch: float, forget_rate: float, gradual_epochs: float = 10.0) -> float:
    """R(T) = 1 − min(T / T_k · τ, τ), the share of a batch to train on.

    Args:
        epoch: T, counted from 0.
        forget_rate: τ, in [0, 1): the noise rate, or an estimate of it.
        gradual_epochs: T_k, epochs until the whole of τ is left out.

    Raises:
        ValueError: An argument is outside of its range.
    """
    check_number("epoch", epoch, 0)
    check_number("forget_rate", forget_rate, 0, 1)
    check_number("gradual_epochs", gradual_epochs, 0, open_low=True)
    return 1 - min(epoch / gradual_epochs * forget_rate, forget_rate)


def small_loss(loss_N: Tensor, rate: float) -> Tensor:
    """Places of the ⌊rate · N⌋ smallest losses, of one at least; a NaN is the largest.

    Raises:
        ValueError: The rate is outside of [0, 1], or there is no loss.
    """
    check_number("rate", rate, 0, 1)
    if loss_N.ndim != 1 or not len(loss_N):
        raise ValueError(f"losses: expected a shape (N) with N ≥ 1, got {tuple(loss_N.shape)}")
    # 0.7 · 10 is a little below 7 in floating point.
    kept = max(1, math.floor(rate * len(loss_N) + 1e-6))
    return loss_N.detach().argsort(stable=True)[:kept]


def co_teach(loss_a_N: Tensor, loss_b_N: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """The places that network a trains on, chosen by b, and those that b trains on, chosen by a.

        for_a, for_b = co_teach(loss_a, loss_b, rate)
        loss_a[for_a].mean().backward(); loss_b[for_b].mean().backward()

    With several processes each chooses within its own part of the batch.

    Args:
        loss_a_N: Losses of a, from any `SampleLoss`.
        loss_b_N: Losses of b on the same batch.
        rate: See `remember_rate`.

    Raises:
        ValueError: See `small_loss`, or the numbers of losses differ.
    """
    if loss_a_N.shape != loss_b_N.shape:
        raise ValueError(
            f"losses: expected equal shapes, got {tuple(loss_a_N.shape)}, {tuple(loss_b_N.shape)}"
        )
    return small_loss(loss_b_N, rate), small_loss(loss_a_N, rate)
