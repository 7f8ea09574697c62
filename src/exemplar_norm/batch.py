"""Batch Normalization as a member of the family: PyTorch's layer where its own cannot span ranks.

Legend: N samples, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from exemplar_norm.base import MomentLayer
from exemplar_norm.moments import Moments


class BatchNorm(MomentLayer):
    """Batch Normalization with the state of `nn.BatchNorm2d`, for inputs of any rank, on any device.

    Y = γ · (X − μ_bn) / sqrt(σ²_bn + ε) + β

    `sync_norm` puts it where `nn.SyncBatchNorm`, which refuses CPU tensors, cannot stand.

    Args:
        num_features: C, the size of dimension 1 of the input.
        affine: whether there are γ and β.
        eps: ε.
        momentum: of the running averages; None for the cumulative average.
        sync: whether the statistics span all ranks of `process_group` in training.
        process_group: those ranks; None for all.
        device: where parameters are created.
        dtype: of the parameters.

    Shape: (N, C, *spatial) → the same, in the input's dtype and memory format.

    Raises:
        ValueError: an argument, or an input's rank, channels or dtype, is not as expected.

    Source: Ioffe and Szegedy, ICML 2015, arXiv:1502.03167.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        affine: bool = True,
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
        weight, bias = (
            nn.Parameter(make(self.num_features, device=device, dtype=dtype)) if affine else None
            for make in (torch.ones, torch.zeros)
        )
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """A = γ / sqrt(σ² + ε), B = A · (m − μ) + β."""
        mean = moments.mean
        mu, sigma2 = self.batch_statistics(moments)
        scale = torch.rsqrt(sigma2 + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.to(mean.dtype)
        shift = scale * (mean - mu)
        if self.bias is not None:
            shift = shift + self.bias.to(mean.dtype)
        return scale.expand_as(mean), shift
