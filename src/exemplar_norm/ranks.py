"""BN's statistics over the ranks of a process group, from each rank's instance moments.

Legend: N samples, C channels, S positions, R ranks; N and S may differ from rank to rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def ranks_of(group: ProcessGroup | None) -> int:
    """Number of ranks; 1 where nothing is distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def pool_ranks(
    mean_NC: Tensor, var_NC: Tensor, positions: int, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of a channel over all samples of all ranks, and the count of values.

    With n_r = N_r · S_r values on rank r, whose own statistics are μ_r and σ²_r:

        n = Σ_r n_r,    μ = Σ_r n_r μ_r / n,    σ² = Σ_r n_r (σ²_r + (μ_r − μ)²) / n

    which is exact, and free of cancellation. Traffic: one all-gather of 2C + 1 numbers forward, one
    all-reduce of 2C backward, as in `nn.SyncBatchNorm`. A rank with an empty batch takes part with n_r = 0.

    Returns:
        μ and σ², each (1, C), and n, a scalar tensor.
    """
    mu, sigma2, count = _PoolRanks.apply(mean_NC, var_NC, positions, group)
    return mu, sigma2, count


def _local_statistics(mean_NC: Tensor, var_NC: Tensor, positions: int) -> Tensor:
    """(μ_r, σ²_r, n_r) in one vector (2C + 1)."""
    samples = max(mean_NC.shape[0], 1)
    mu = mean_NC.sum(0) / samples
    sigma2 = (var_NC + (mean_NC - mu).square()).sum(0) / samples
    return torch.cat([mu, sigma2, mu.new_full((1,), mean_NC.shape[0] * positions)])


class _PoolRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, positions: int, group: ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        local = _local_statistics(mean, var, positions)
        everyones = local.new_empty(ranks_of(group) * local.shape[0])
        dist.all_gather_into_tensor(everyones, local, group=group)
        mu_RC, sigma2_RC, n_R1 = everyones.view(-1, local.shape[0]).split(
            [mean.shape[1], mean.shape[1], 1], 1
        )
        count = n_R1.sum()
        share_R1 = n_R1 / count.clamp(min=1)  # every rank may have an empty batch
        mu = (share_R1 * mu_RC).sum(0, keepdim=True)
        sigma2 = (share_R1 * (sigma2_RC + (mu_RC - mu).square())).sum(0, keepdim=True)
        ctx.positions, ctx.group = positions, group
        ctx.save_for_backward(mean, mu, count)
        ctx.mark_non_differentiable(count)
        return mu, sigma2, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_mu: Tensor, g_sigma2: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        # dμ/dm = S/n, dσ²/dm = 2 S (m − μ)/n, dσ²/dv = S/n; the loss is the sum of every rank's.
        mean, mu, count = ctx.saved_tensors
        gradients = torch.cat([g_mu, g_sigma2])
        dist.all_reduce(gradients, group=ctx.group)
        g_mu, g_sigma2 = gradients.split(1)
        share = ctx.positions / count
        return share * (g_mu + 2 * g_sigma2 * (mean - mu)), (share * g_sigma2).expand_as(mean), None, None
