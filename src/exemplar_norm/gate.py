"""EN's gate: from a sample's moments to its ratio λ over the K normalizers.

Legend: N samples, C channels, K normalizers, D descriptor channels (C, or 2C with the deviations),
R = reduction, G = D / R.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle

from exemplar_norm.normalizers import is_recomputation, pool
from exemplar_norm.ranks import pool_ranks, ranks_of

# These need the gate itself to run; so do forward hooks, which may change λ, unless they came by `observe`.
_HOOKS = (
    "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward",
)  # fmt: skip

Descriptor = Literal["mean", "mean_std"]
Correlations = Literal["plain", "standardised", "scale_free"]
Start = Literal["zero", "random"]

_MOMENTUM = 0.1
"""Of the averages of the correlations."""
_FLOOR = 1e-3
"""Deviation of a correlation, as a share of its mean, below which it is not enlarged: mostly rounding."""
_TINY = 1e-6
"""Deviation of a correlation up to which it counts as constant; added to the size that one is divided by."""
_FORWARDS = 8
"""Forward passes for which one copy of the averages is used, unless the weights are changed before."""


@torch.library.custom_op("exemplar_norm::kept", mutates_args=())
def _kept(value: Tensor) -> Tensor:
    """A copy that a compiled backward pass does not make again, from what was moved in the meantime."""
    return value.clone()


@_kept.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


class _Averages(NamedTuple):
    """The averages of the correlations as forward passes use them.

    Attributes:
        version: Of the weights when the copy was made: an optimiser that changes them raises it.
        uses: How many forward passes have used it.
        mean: E v.
        factor: 1 / the deviation by which is divided; 0 for what does not vary.
    """

    version: int
    uses: int
    mean: Tensor
    factor: Tensor


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


class Gate(nn.Module):
    """λ = softmax(FC₂(tanh(FC₁(vec(v))))), v = z zᵀ, z = grouped 1×1 reduction of the descriptor.

    z_k (G) reduces the k-th row of the descriptor from D to G = D / r channels, each from r neighbouring
    channels, with one set of weights for all rows. The correlations z zᵀ (K × K) of a sample then say how its
    pooled input looks through each pair of normalizers. FC₂ starts at zero, so that λ = 1/K exactly
    at the first step.

    What FC₁ sees of them is v itself ("plain", published), or, our extensions,

        "standardised": (v − E v) / sqrt(Var v + (10⁻³ E v)²), and 0 where Var v ≤ 10⁻¹², with moving averages
            over the training samples of earlier steps as constants. Left to itself v differs between samples
            by so little, in size or beside its mean, that λ does not.
        "scale_free": v / (10⁻⁶ + Σ_k v_kk / K).

    Args:
        channels: D, channels of the descriptor.
        num_normalizers: K.
        reduction: r; it has to divide `channels`.
        hidden: outputs of FC₁.
        correlations: what FC₁ sees.
        start: of FC₂'s weight: "zero", or "random" as PyTorch draws a linear layer's; its bias is zero.
        rate: factor on the gradients of FC₂: under plain SGD it learns at `rate` times the learning rate. No
            other gradient is changed, that of the input neither.
        device: where the parameters are created.
        dtype: of the parameters.

    Shape: (N, K, D) → (N, K); rows of the output sum to 1.

    Source: Zhang et al., CVPR 2020, section 3 as we read the paper; the zero start is ours.
    """

    correlation_mean: Tensor
    correlation_var: Tensor
    correlation_batches: Tensor

    def __init__(
        self,
        channels: int,
        num_normalizers: int,
        reduction: int,
        hidden: int,
        correlations: Correlations = "plain",
        start: Start = "zero",
        rate: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        K = num_normalizers
        self.correlations, self.start, self.rate = correlations, start, rate
        self.conv = nn.Conv1d(
            channels, channels // reduction, 1, groups=channels // reduction, bias=False,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.fc1 = nn.Linear(K * K, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, K, device=device, dtype=dtype)
        if correlations == "standardised":
            self.register_buffer("correlation_mean", torch.zeros(K * K, device=device, dtype=dtype))
            self.register_buffer("correlation_var", torch.ones(K * K, device=device, dtype=dtype))
            batches = torch.zeros((), dtype=torch.long, device=device)
            self.register_buffer("correlation_batches", batches)
        self._used: _Averages | None = None
        self._observers: set[int] = set()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the hidden layers anew, set FC₂ to its start and forget the averages."""
        self._used = None
        self.conv.reset_parameters()
        self.fc1.reset_parameters()
        if self.start == "random":
            self.fc2.reset_parameters()
        else:
            nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)
        if self.correlations == "standardised":
            self.correlation_mean.zero_()
            self.correlation_var.fill_(1)
            self.correlation_batches.zero_()

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The weights in the order in which they are used, as FC₁ and FC₂ of v itself.

        A step that is the same for all samples, such as standardising, is in FC₁'s.
        """
        conv, fc1, fc2 = self.conv.weight.to(dtype), self.fc1, self.fc2
        # With all weights in the statistics' precision a half-precision network keeps a float32 gate.
        weight, bias = fc1.weight.to(dtype), fc1.bias.to(dtype)
        if self.correlations == "standardised":
            mean, factor = self._averages(dtype)
            weight = weight * factor
            bias = bias - weight @ mean
        return conv, weight, bias, fc2.weight.to(dtype), fc2.bias.to(dtype)

    def _rated(self, weight: Tensor) -> Tensor:
        """`weight` itself, whose gradient is multiplied by the rate."""
        if self.rate == 1:
            return weight
        fixed = weight.detach()
        return fixed + (weight - fixed) * self.rate

    def _averages(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """E v (K²) and what deviations from it are multiplied by.

        In training a copy, as `follow` moves the averages behind the forward pass: the same one between two
        steps of the optimiser, so that activation checkpointing computes again what it computed before.
        """
        if not self.training:
            return self._standardisation(dtype)
        if torch.compiler.is_compiling():
            mean, factor = self._standardisation(dtype)
            return _kept(mean), _kept(factor)
        if torch._C._are_functorch_transforms_active():  # whose tensors must not be kept
            mean, factor = self._standardisation(dtype)
            return mean.clone(), factor
        used, version = self._used, self.fc1.weight._version
        again = is_recomputation()
        is_old = used is None or used.version != version or used.uses >= _FORWARDS
        # A network that was moved or cast keeps the version of its weights.
        is_elsewhere = used is None or used.mean.dtype != dtype or used.mean.device != self.fc1.weight.device
        if used is None or is_elsewhere or (is_old and not again):
            mean, factor = self._standardisation(dtype)
            used = _Averages(version, 0, mean.clone(), factor)
        self._used = used if again else used._replace(uses=used.uses + 1)
        return used.mean, used.factor

    def _standardisation(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mean, var = self.correlation_mean.to(dtype), self.correlation_var.to(dtype)
        # A quotient by next to nothing would be 0 in the output and rounding in the gradients.
        varies = var > _TINY**2
        spread = torch.where(varies, var + (_FLOOR * mean).square(), 1.0)
        return mean, varies.to(dtype) * spread.rsqrt()

    @torch.no_grad()
    def follow(self, v_NK2: Tensor, sync: bool, group: ProcessGroup | None) -> None:
        """Let the averages of the correlations follow those of a training batch, over all ranks with `sync`.

        The first batches count alike; from the tenth on a batch counts for a tenth.
        """
        if self.correlations != "standardised" or not self.training or is_recomputation():
            return
        v_NK2 = v_NK2.detach()
        spread = torch.zeros_like(v_NK2)
        if sync and ranks_of(group) > 1:
            mean, var, _ = pool_ranks(v_NK2, spread, 1, group)
        elif len(v_NK2):
            mean, var = pool(v_NK2, spread, 0)
        else:
            return
        self.correlation_batches.add_(1)
        # Tensor arithmetic: reading the counter would break a compiled graph.
        share = (1.0 / self.correlation_batches.to(mean.dtype)).clamp(min=_MOMENTUM)
        old_mean, old_var = self.correlation_mean.to(mean.dtype), self.correlation_var.to(mean.dtype)
        moved = mean[0] - old_mean
        # The variance about the common mean: that within and that between what is averaged.
        new_var = old_var + share * (var[0] - old_var) + share * (1 - share) * moved.square()
        self.correlation_var.copy_(new_var)
        self.correlation_mean.copy_(old_mean + share * moved)

    def is_plain(self) -> bool:
        """Whether another form may stand in for the gate: each part is its own, no hook but observers."""
        parts = (self, self.conv, self.fc1, self.fc2)
        kinds = tuple(type(part) for part in parts)
        return (
            kinds == (Gate, nn.Conv1d, nn.Linear, nn.Linear)
            and self.correlations != "scale_free"
            and not any(vars(self).get(name) for name in _HOOKS)
            and self._forward_hooks.keys() <= self._observers
            and not _has_any_global_hook()
        )

    def observe(self, hook: Callable[..., None]) -> RemovableHandle:
        """Register a forward hook that looks at λ and returns nothing: the faster forms stay in use."""
        handle = self.register_forward_hook(hook)
        self._observers.add(handle.id)
        return handle

    def forward(
        self,
        descriptor: Tensor,
        ratio: Tensor | None = None,
        sync: bool = False,
        group: ProcessGroup | None = None,
    ) -> Tensor:
        """Map the descriptor (N, K, D) to λ (N, K), or return λ as another form of the map has found it."""
        if ratio is not None:
            return ratio
        conv, weight1, bias1, weight2, bias2 = self.weights(descriptor.dtype)
        v_NK2 = self.correlate(descriptor, conv)
        self.follow(v_NK2, sync, group)
        hidden = torch.tanh(F.linear(v_NK2, weight1, bias1))
        return F.softmax(F.linear(hidden, self._rated(weight2), self._rated(bias2)), dim=1)

    def correlate(self, descriptor: Tensor, conv: Tensor) -> Tensor:
        """Correlate the rows of a descriptor (N, K, D): v (N, K²)."""
        G, R, _ = conv.shape
        # A grouped convolution over K "positions", written as what it is: r products a channel.
        z_NKG = (descriptor.unflatten(2, (G, R)) * conv.squeeze(2)).sum(3)
        v_NKK = torch.bmm(z_NKG, z_NKG.transpose(1, 2))
        if self.correlations == "scale_free":
            size = v_NKK.diagonal(dim1=1, dim2=2).mean(1)
            v_NKK = v_NKK / (size + _TINY)[:, None, None]
        return v_NKK.flatten(1)
