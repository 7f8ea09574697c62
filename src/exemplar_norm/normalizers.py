"""IN, LN, GN and BN as statistics (μ, σ²) computed from instance moments alone, and BN's running averages.

With m, v the mean and biased variance of each channel of each sample, pooling both over a set of
(sample, channel) pairs gives that set's exact mean and biased variance:

    μ = mean(m),    σ² = mean(v) + mean((m − μ)²)

The set is one pair for `in`, a sample's channels for `ln`, a group of them for `gn`, a channel's samples
for `bn`. Nothing here cancels, however large the mean is against the deviation.

Legend: N samples, C channels, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from exemplar_norm.moments import Moments
from exemplar_norm.ranks import pool_ranks, ranks_of

Normalizer = Literal["in", "ln", "bn", "gn"]
NORMALIZERS: tuple[str, ...] = get_args(Normalizer)

Statistics = tuple[Tensor, Tensor]


def check_normalizers(normalizers: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple; ValueError if one is unknown or repeated, or there is none.

    A single string is refused, as a sequence of letters; a set, as it has no order.
    """
    choices = f"one or more of {', '.join(NORMALIZERS)}, each at most once"
    if isinstance(normalizers, str) or not isinstance(normalizers, Sequence):
        raise ValueError(f"normalizers: expected a list or tuple of {choices}, got {normalizers!r}")
    names = tuple(normalizers)
    if not names or any(name not in NORMALIZERS for name in names) or len(set(names)) < len(names):
        raise ValueError(f"normalizers: expected {choices}, got {', '.join(map(repr, names)) or 'none'}")
    return names


def pool(mean: Tensor, var: Tensor, dim: int) -> Statistics:
    """Mean and biased variance of the union of equally large sets, given those of each set along `dim`."""
    mu = mean.mean(dim, keepdim=True)
    return mu, var.mean(dim, keepdim=True) + (mean - mu).square().mean(dim, keepdim=True)


def group_statistics(mean_NC: Tensor, var_NC: Tensor, groups: int) -> Statistics:
    """GN's statistics, repeated over the channels of each group: (N, C) each."""
    N, C = mean_NC.shape
    size = C // groups
    mu_NG1, var_NG1 = pool(mean_NC.reshape(N, groups, size), var_NC.reshape(N, groups, size), 2)
    return mu_NG1.expand(-1, -1, size).flatten(1), var_NG1.expand(-1, -1, size).flatten(1)


class RunningStatistics(nn.Module):
    """BN's statistics: of the batch in training, running averages in evaluation, as in `nn.BatchNorm2d`.

    A base of the layers, so that the buffers carry BatchNorm's names: `running_mean`, `running_var`
    (unbiased), `num_batches_tracked`. `momentum=None` keeps the cumulative average. A batch that holds one
    value per channel moves `running_mean` only: its variance estimate would be 0. An empty batch moves
    nothing.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float | None
    num_features: int
    sync: bool
    process_group: ProcessGroup | None

    def _register_running_statistics(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self.register_buffer("running_mean", torch.zeros(self.num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(self.num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def is_synced(self) -> bool:
        """Whether there are other ranks to share statistics with."""
        return self.sync and ranks_of(self.process_group) > 1

    def batch_statistics(self, moments: Moments) -> Statistics:
        """(μ, σ²), each (1, C): the batch's in training (the averages move), else the running ones."""
        mean, var, positions = moments
        count: int | Tensor = mean.shape[0] * positions
        synced = self.is_synced()
        # An empty batch has no statistics, and no output that would need them.
        if not self.training or (count == 0 and not synced):
            return self.running_mean.to(mean.dtype)[None], self.running_var.to(mean.dtype)[None]
        if synced:
            mu, sigma2, count = pool_ranks(mean, var, positions, self.process_group)
        else:
            mu, sigma2 = pool(mean, var, 0)
        self._update_running_statistics(mu[0], sigma2[0], count)
        return mu, sigma2

    @torch.no_grad()
    def _update_running_statistics(self, mu: Tensor, sigma2: Tensor, count: int | Tensor) -> None:
        if isinstance(count, Tensor):
            # The count over ranks lives on the device: no branch on it, which would wait for the device.
            step: int | Tensor = (count > 0).to(torch.long)
            mu = torch.where(count > 0, mu, self.running_mean)
        else:
            step = 1
        if not self.count_batch(step):
            return
        # Tensor arithmetic for the cumulative average: reading the counter would break a compiled graph.
        factor: float | Tensor | None = self.momentum
        if factor is None:
            factor = 1.0 / self.num_batches_tracked.clamp(min=1).to(mu.dtype)
        _move(self.running_mean, mu, factor)
        if isinstance(count, Tensor):
            unbiased = torch.where(count > 1, sigma2 * (count / (count - 1)), self.running_var)
            _move(self.running_var, unbiased, factor)
        elif count > 1:
            _move(self.running_var, sigma2 * (count / (count - 1)), factor)

    @torch.no_grad()
    def count_batch(self, step: int | Tensor = 1) -> bool:
        """Count a batch whose statistics are about to move the averages; False if it was counted before."""
        if is_recomputation():
            return False
        self.num_batches_tracked.add_(step)
        return True


def is_recomputation() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing has counted the batch already."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _move(average: Tensor, value: Tensor, factor: float | Tensor) -> None:
    """Set average to (1 − factor) · average + factor · value, in the precision of `value`."""
    if average.dtype == value.dtype:
        average.lerp_(value.detach(), factor)
        return
    current = average.to(value.dtype)
    average.copy_(current + factor * (value.detach() - current))
