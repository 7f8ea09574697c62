"""DivideMix without its training loop: two networks that each divide the training set for the other.

An epoch of network a, the other, b, fixed; then the same with the two exchanged:

    clean = clean_probability(losses of b on the whole training set); labelled where clean > 0.5
    targets_x = refine(labels, clean, p of a on each view);  targets_u = guess(p of a and of b on each view)
    mixed, targets = mix_match(cat(x views, u views), cat(targets_x …, targets_u …))
    loss = divide_mix_loss(a(mixed), targets, number of x rows, weight = ramp(…))

Source: Li et al., arXiv:2002.07394. Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.noisy_labels.mixing import Mixing, blend, draw_share
from tasks.noisy_labels.sample_loss import check_number, log_probabilities


def clean_probability(losses: NDArray[np.floating], seed: int = 0) -> NDArray[np.float64]:
    """Probability (N) that each label is right: that its loss is of the lower of two Gaussians.

    The losses, of cross-entropy, are first scaled to [0, 1]; where they are all the same, every label counts
    as right.

    Args:
        losses: (N) loss of each training sample.
        seed: Seed of the mixture's start.

    Raises:
        ValueError: There are fewer than two losses, or one is not finite.
    """
    from sklearn.mixture import GaussianMixture

    losses = np.asarray(losses, np.float64)
    if losses.ndim != 1 or len(losses) < 2 or not np.isfinite(losses).all():
        raise ValueError(f"losses: expected two finite numbers or more, got a shape {losses.shape}")
    low, high = losses.min(), losses.max()
    if low == high:
        return np.ones(len(losses))
    column = ((losses - low) / (high - low))[:, None]
    # The authors stop after 10 steps, converged or not.
    mixture = GaussianMixture(2, max_iter=100, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(column)
    return np.asarray(mixture.predict_proba(column)[:, mixture.means_.argmin()])


def sharpen(p_NC: Tensor, temperature: float = 0.5) -> Tensor:
    """p_c^(1/T) / Σ_c p_c^(1/T)."""
    check_number("temperature", temperature, 0, open_low=True)
    # Relative to the largest, so that no power underflows to a row of zeros.
    powers_NC = (p_NC / p_NC.amax(dim=1, keepdim=True)) ** (1 / temperature)
    return powers_NC / powers_NC.sum(dim=1, keepdim=True)


@torch.no_grad()
def refine(labels_NC: Tensor, clean_N: Tensor, p_VNC: Sequence[Tensor], temperature: float = 0.5) -> Tensor:
    """Co-refinement of labelled samples: sharpen(w y + (1 − w) · mean of p over the views).

    Args:
        labels_NC: Given labels y, one-hot.
        clean_N: w, from the losses of the other network.
        p_VNC: What the network predicts for each view of the samples.
        temperature: T.
    """
    w_N1 = clean_N[:, None]
    return sharpen(w_N1 * labels_NC + (1 - w_N1) * _mean(p_VNC), temperature)


@torch.no_grad()
def guess(p_VNC: Sequence[Tensor], temperature: float = 0.5) -> Tensor:
    """Co-guessing for unlabelled samples: sharpen(mean of p over the views and both networks).

    Args:
        p_VNC: What each network predicts for each view of the samples.
        temperature: T.
    """
    return sharpen(_mean(p_VNC), temperature)


def mix_match(inputs: Tensor, targets_NC: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend each row with another, labelled or not: λ' = max(λ, 1 − λ), λ ~ Beta(α, α), one a batch.

    Args:
        inputs: Labelled rows, then unlabelled ones.
        targets_NC: Their targets.
        alpha: α; 4 for CIFAR, 0.5 for WebVision.

    Returns:
        Inputs and targets, each row still nearer to itself than to its partner.
    """
    share = draw_share(alpha)
    partner = torch.randperm(len(inputs), device=inputs.device)
    mixing = Mixing(partner, max(share, 1 - share))
    return blend(inputs, mixing), blend(targets_NC, mixing)


class DivideMixLoss(NamedTuple):
    """The terms of the loss, and their sum `total`."""

    labelled: Tensor
    unlabelled: Tensor
    penalty: Tensor
    total: Tensor


def divide_mix_loss(
    logits_NC: Tensor, targets_NC: Tensor, labelled: int, unlabelled_weight: float
) -> DivideMixLoss:
    """L = L_x + λ_u L_u + L_reg on a mixed batch.

    L_x = −mean_n Σ_c q_nc log p_nc over the labelled rows, L_u = mean of (p_nc − q_nc)² over all numbers of
    the others (0 where there is none), L_reg = Σ_c 1/C · log(1/C / mean_n p_nc) over all rows.

    Args:
        logits_NC: Outputs of the network.
        targets_NC: Targets q.
        labelled: Number of labelled rows; they come first.
        unlabelled_weight: λ_u, see `ramp`.

    Raises:
        ValueError: The shapes do not fit, or there is no labelled row.
    """
    if logits_NC.shape != targets_NC.shape or not 1 <= labelled <= len(logits_NC):
        raise ValueError(
            f"batch: expected logits and targets (N, C) with 1 to N labelled rows, got "
            f"{tuple(logits_NC.shape)} and {tuple(targets_NC.shape)} with {labelled}"
        )
    log_p_NC = log_probabilities(logits_NC)
    x_loss = -(targets_NC[:labelled] * log_p_NC[:labelled]).sum(dim=1).mean()
    squares = (log_p_NC[labelled:].exp() - targets_NC[labelled:]).square()
    u_loss = squares.mean() if squares.numel() else x_loss.new_zeros(())
    # The logarithm of the mean over n, without its underflow where a class is predicted nowhere.
    rows, classes = log_p_NC.shape
    log_mean_C = log_p_NC.logsumexp(dim=0) - np.log(rows)
    penalty = -np.log(classes) - log_mean_C.mean()
    return DivideMixLoss(x_loss, u_loss, penalty, x_loss + unlabelled_weight * u_loss + penalty)


def ramp(epoch: float, warm_up: float, weight: float, length: float = 16.0) -> float:
    """λ_u · clip((epoch − warm-up) / length, 0, 1).

    Args:
        epoch: Counted from 0, fractions allowed.
        warm_up: Epochs of plain training before.
        weight: λ_u; 0 for WebVision, 0 to 150 for CIFAR by the noise.
        length: Epochs until the whole weight is reached.
    """
    check_number("length", length, 0, open_low=True)
    return weight * min(max((epoch - warm_up) / length, 0.0), 1.0)


def confidence_penalty(logits_NC: Tensor) -> Tensor:
    """Σ_c p_c log p_c (N), added in the warm-up under asymmetric noise, which breeds confident networks."""
    log_p_NC = log_probabilities(logits_NC)
    return (log_p_NC.exp() * log_p_NC).sum(dim=1)


def _mean(p_VNC: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(p_VNC)).mean(dim=0)
