"""Conditional Batch Normalization: BN whose scale and shift depend on the sample.

Legend: N samples, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from exemplar_norm.base import MomentLayer, check_positive
from exemplar_norm.moments import Moments


class ConditionalNorm(MomentLayer):
    """Batch normalization with γ and β predicted per sample from the pooled input.

    Y = (γ + Δγ) · (X − μ_bn) / sqrt(σ²_bn + ε) + β + Δβ,    (Δγ, Δβ) = FC₂(relu(FC₁(m)))

    FC₂ starts at zero, so that the layer starts as BatchNorm. It is the comparator that the abstract of the
    EN paper names; its form there is not at hand, this one is ours.

    Parameters: `weight` γ (C) of ones, `bias` β (C) of zeros, `fc1` (hidden, C), `fc2` (2C, hidden);
    the buffers of `nn.BatchNorm2d`.

    Args:
        num_features: C, the size of dimension 1 of the input.
        hidden: width of the MLP; max(C / 16, 8) by default.
        eps: ε.
        momentum: of the running averages; None for the cumulative average.
        sync: whether the statistics span all ranks of `process_group` in training.
        process_group: those ranks; None for all.
        device: where parameters are created.
        dtype: of the parameters.

    Shape: (N, C, *spatial) → the same, in the input's dtype and memory format.

    Raises:
        ValueError: an argument, or an input's rank, channels or dtype, is not as expected.

    Source: de Vries et al., *Modulating Early Visual Processing by Language*, NeurIPS 2017,
    arXiv:1707.00683, with the input itself as the condition.
    """

    def __init__(
        self,
        num_features: int,
        *,
        hidden: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, ("bn",), eps=eps, momentum=momentum,
            sync=sync, process_group=process_group, device=device, dtype=dtype,
        )  # fmt: skip
        C = self.num_features
        width = max(C // 16, 8) if hidden is None else check_positive("hidden", hidden)
        self.weight = nn.Parameter(torch.ones(C, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(C, device=device, dtype=dtype))
        self.fc1 = nn.Linear(C, width, device=device, dtype=dtype)
        self.fc2 = nn.Linear(width, 2 * C, device=device, dtype=dtype)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """A = (γ + Δγ) / sqrt(σ² + ε), B = A · (m − μ) + β + Δβ."""
        mean = moments.mean
        dtype = mean.dtype
        mu, sigma2 = self.batch_statistics(moments)
        hidden = F.relu(F.linear(mean, self.fc1.weight.to(dtype), self.fc1.bias.to(dtype)))
        delta = F.linear(hidden, self.fc2.weight.to(dtype), self.fc2.bias.to(dtype))
        d_weight, d_bias = delta.chunk(2, 1)
        scale = (self.weight.to(dtype) + d_weight) * torch.rsqrt(sigma2 + self.eps)
        return scale, torch.addcmul(self.bias.to(dtype) + d_bias, scale, mean - mu)


class ConditionalNorm1d(ConditionalNorm):
    """`ConditionalNorm` for inputs (N, C) and (N, C, L)."""

    ranks = (2, 3)


class ConditionalNorm2d(ConditionalNorm):
    """`ConditionalNorm` for inputs (N, C, H, W)."""

    ranks = (4,)


class ConditionalNorm3d(ConditionalNorm):
    """`ConditionalNorm` for inputs (N, C, D, H, W)."""

    ranks = (5,)
