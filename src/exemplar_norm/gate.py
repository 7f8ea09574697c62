"""EN's gate: from a sample's moments to its ratio λ over the K normalizers.

Legend: N samples, C channels, K normalizers, D descriptor channels (C, or 2C with the deviations),
R = reduction, G = D / R.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle

# These need the gate itself to run; so do forward hooks, which may change λ, unless they came by `observe`.
_HOOKS = (
    "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward",
)  # fmt: skip

Descriptor = Literal["mean", "mean_std"]


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


class Gate(nn.Module):
    """λ = softmax(FC₂(tanh(FC₁(vec(z zᵀ))))), z = grouped 1×1 reduction of the descriptor.

    z_k (G) reduces the k-th row of the descriptor from D to G = D / r channels, each from r neighbouring
    channels, with one set of weights for all rows. The correlations z zᵀ (K × K) of a sample then say how its
    pooled input looks through each pair of normalizers. FC₂ starts at zero, so that λ = 1/K exactly
    at the first step.

    Args:
        channels: D, channels of the descriptor.
        num_normalizers: K.
        reduction: r; it has to divide `channels`.
        hidden: outputs of FC₁.
        device: where the parameters are created.
        dtype: of the parameters.

    Shape: (N, K, D) → (N, K); rows of the output sum to 1.

    Source: Zhang et al., CVPR 2020, section 3 as we read the paper; the zero start is ours.
    """

    def __init__(
        self,
        channels: int,
        num_normalizers: int,
        reduction: int,
        hidden: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        K = num_normalizers
        self.conv = nn.Conv1d(
            channels, channels // reduction, 1, groups=channels // reduction, bias=False,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.fc1 = nn.Linear(K * K, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, K, device=device, dtype=dtype)
        self._observers: set[int] = set()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the hidden layers anew and set FC₂ to zero."""
        self.conv.reset_parameters()
        self.fc1.reset_parameters()
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def weights(self) -> tuple[Tensor, ...]:
        """The weights in the order in which they are used."""
        return self.conv.weight, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias

    def is_plain(self) -> bool:
        """Whether another form may stand in for the gate: each part is its own, no hook but observers."""
        parts = (self, self.conv, self.fc1, self.fc2)
        kinds = tuple(type(part) for part in parts)
        return (
            kinds == (Gate, nn.Conv1d, nn.Linear, nn.Linear)
            and not any(vars(self).get(name) for name in _HOOKS)
            and self._forward_hooks.keys() <= self._observers
            and not _has_any_global_hook()
        )

    def observe(self, hook: Callable[..., None]) -> RemovableHandle:
        """Register a forward hook that looks at λ and returns nothing: the faster forms stay in use."""
        handle = self.register_forward_hook(hook)
        self._observers.add(handle.id)
        return handle

    def forward(self, descriptor: Tensor, ratio: Tensor | None = None) -> Tensor:
        """Map the descriptor (N, K, D) to λ (N, K), or return λ as another form of the map has found it."""
        if ratio is not None:
            return ratio
        # The weights follow the statistics' precision: a half-precision network keeps a float32 gate.
        dtype = descriptor.dtype
        conv, fc1, fc2 = self.conv.weight.to(dtype), self.fc1, self.fc2
        G, R, _ = conv.shape
        # A grouped convolution over K "positions", written as what it is: r products a channel.
        z_NKG = (descriptor.unflatten(2, (G, R)) * conv.squeeze(2)).sum(3)
        correlations = torch.bmm(z_NKG, z_NKG.transpose(1, 2)).flatten(1)
        hidden = torch.tanh(F.linear(correlations, fc1.weight.to(dtype), fc1.bias.to(dtype)))
        return F.softmax(F.linear(hidden, fc2.weight.to(dtype), fc2.bias.to(dtype)), dim=1)
