"""Switchable Normalization and its sparse form: one mixture a layer, shared by all samples.

Legend: N samples, C channels, K normalizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from exemplar_norm.base import DEFAULT_NORMALIZERS, MomentLayer
from exemplar_norm.moments import Moments
from exemplar_norm.sparsestmax import circumradius, sparsestmax


class SwitchNorm(MomentLayer):
    """Switchable Normalization: one mixture for all samples, of means and of variances separately.

    Y = γ · (X − Σ_k w_k μ_k) / sqrt(Σ_k w'_k σ²_k + ε) + β,
    w = softmax(mean_weight),  w' = softmax(var_weight)

    Parameters: `weight` γ (C) of ones, `bias` β (C) of zeros, `mean_weight` (K) and `var_weight` (K) of
    ones; with "bn" the buffers of `nn.BatchNorm2d`. Variances are biased, and running averages are PyTorch's;
    the public code differs in both.

    Args:
        num_features: C, the size of dimension 1 of the input.
        normalizers: the K normalizers, of "in", "ln", "bn", "gn".
        groups: groups of "gn"; it has to divide C where "gn" is among the normalizers.
        eps: ε.
        momentum: of the running averages of "bn"; None for the cumulative average.
        sync: whether "bn" spans all ranks of `process_group` in training, whatever the sizes on each.
        process_group: those ranks; None for all.
        device: where parameters are created.
        dtype: of the parameters.

    Shape: (N, C, *spatial) → the same, in the input's dtype and memory format.

    Raises:
        ValueError: an argument, or an input's rank, channels or dtype, is not as expected.

    Source: Luo et al., *Differentiable Learning-to-Normalize via Switchable Normalization*, ICLR 2019,
    arXiv:1806.10779.
    """

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str] = DEFAULT_NORMALIZERS,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, normalizers, groups=groups, eps=eps, momentum=momentum,
            sync=sync, process_group=process_group, device=device, dtype=dtype,
        )  # fmt: skip
        K, C = len(self.normalizers), self.num_features
        self.weight = nn.Parameter(torch.ones(C, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(C, device=device, dtype=dtype))
        self.mean_weight = nn.Parameter(torch.ones(K, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(K, device=device, dtype=dtype))

    def mixture(self) -> tuple[Tensor, Tensor]:
        """The mixtures (w, w') of means and of variances, each (K) and summing to 1."""
        means, variances = torch.softmax(self._logits(), 1)
        return means, variances

    def _logits(self) -> Tensor:
        """Both logits (2, K) in the precision of statistics: a half-precision network mixes in float32."""
        logits = torch.stack([self.mean_weight, self.var_weight])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """A = γ / sqrt(Σ_k w'_k σ²_k + ε), B = A · Σ_k w_k (m − μ_k) + β."""
        mean = moments.mean
        mu_NKC, sigma2_NKC = self.statistics(moments)
        mean_weight, var_weight = (w.to(mean.dtype).unsqueeze(1) for w in self.mixture())
        # Differences first: m − Σ w μ would keep the rounding of Σ w = 1, magnified by a large mean.
        offset = (mean_weight * (mean.unsqueeze(1) - mu_NKC)).sum(1)
        scale = self.weight.to(mean.dtype) * torch.rsqrt((var_weight * sigma2_NKC).sum(1) + self.eps)
        return scale, torch.addcmul(self.bias.to(mean.dtype), scale, offset)


class SparseSwitchNorm(SwitchNorm):
    """Sparse Switchable Normalization: `SwitchNorm` whose mixtures end as a single normalizer each.

    w = sparsestmax(mean_weight, r),  w' = sparsestmax(var_weight, r)

    The radius r is the buffer `radius`; `set_sparsity` moves it over training from 0 (sparsemax) to the
    simplex's circumradius (one-hot). A mixture that has become one-hot stays as it is: its gradient is
    zero, and `set_sparsity` moves its logits out of reach of what momentum is left. Give `mean_weight`
    and `var_weight` no weight decay, which would shrink the differences that make the choice.

    Parameters, arguments, shapes, errors: as `SwitchNorm`; one more buffer, `radius` (scalar).

    Source: Shao et al., *SSN: Learning Sparse Switchable Normalization via SparsestMax*, CVPR 2019,
    arXiv:1903.03793.
    """

    radius: Tensor
    squeezed: ClassVar[tuple[str, ...]] = (*SwitchNorm.squeezed, "radius")

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str] = DEFAULT_NORMALIZERS,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, normalizers, groups=groups, eps=eps, momentum=momentum,
            sync=sync, process_group=process_group, device=device, dtype=dtype,
        )  # fmt: skip
        self.register_buffer("radius", torch.zeros((), device=device, dtype=dtype))

    def mixture(self) -> tuple[Tensor, Tensor]:
        """The mixtures (w, w') of means and of variances, each (K) and summing to 1."""
        logits = self._logits()
        # A half-precision buffer rounds: what is within that of the circumradius means the circumradius.
        largest = circumradius(len(self.normalizers))
        slack = largest * torch.finfo(self.radius.dtype).eps
        radius = self.radius.to(logits.dtype)
        radius = torch.where(radius >= largest - slack, largest, radius)
        means, variances = sparsestmax(logits, radius)
        return means, variances

    def translate(self, state: dict[str, Any], prefix: str) -> None:
        """See `MomentLayer.translate`; the public SSN code's `mean_fixed` and `var_fixed` are dropped."""
        for flag in ("mean_fixed", "var_fixed"):  # what they say is in the weights themselves: one-hot
            state.pop(prefix + flag, None)
        super().translate(state, prefix)

    @torch.no_grad()
    def set_sparsity(self, progress: float) -> None:
        """Set the radius to `progress` ∈ [0, 1] times the circumradius, and hold what is one-hot."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress: expected a number in [0, 1], got {progress!r}")
        self.radius.fill_(progress * circumradius(len(self.normalizers)))
        for logits, mixture in zip((self.mean_weight, self.var_weight), self.mixture(), strict=True):
            # Sparsemax is one-hot from a gap of 1 on: a gap of 2 survives what an optimizer's momentum does.
            logits.copy_(torch.where(mixture.max() == 1, 2 * mixture, logits))


def set_sparsity(model: nn.Module, progress: float) -> None:
    """Set every `SparseSwitchNorm` of `model` to `progress` ∈ [0, 1] of its way to a single choice.

    Call it before each training step, with the share of training that is done:

        set_sparsity(model, step / total_steps)
    """
    for module in model.modules():
        if isinstance(module, SparseSwitchNorm):
            module.set_sparsity(progress)


class SwitchNorm1d(SwitchNorm):
    """`SwitchNorm` for inputs (N, C) and (N, C, L)."""

    ranks = (2, 3)


class SwitchNorm2d(SwitchNorm):
    """`SwitchNorm` for inputs (N, C, H, W)."""

    ranks = (4,)


class SwitchNorm3d(SwitchNorm):
    """`SwitchNorm` for inputs (N, C, D, H, W)."""

    ranks = (5,)


class SparseSwitchNorm1d(SparseSwitchNorm):
    """`SparseSwitchNorm` for inputs (N, C) and (N, C, L)."""

    ranks = (2, 3)


class SparseSwitchNorm2d(SparseSwitchNorm):
    """`SparseSwitchNorm` for inputs (N, C, H, W)."""

    ranks = (4,)


class SparseSwitchNorm3d(SparseSwitchNorm):
    """`SparseSwitchNorm` for inputs (N, C, D, H, W)."""

    ranks = (5,)
