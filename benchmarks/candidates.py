"""What is measured against what: BatchNorm, EN by backend, and EN and SN as one would first write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exemplar_norm import ExemplarNorm2d, backend, convert_norm
from exemplar_norm.backends import Backend


class TextbookExemplarNorm2d(ExemplarNorm2d):
    """EN as its equation reads: K normalized copies of X, weighted and summed, in plain autograd."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize `x` (N, C, H, W)."""
        running = (self.running_mean, self.running_var)
        copies = [
            F.instance_norm(x, eps=self.eps),
            F.group_norm(x, 1, eps=self.eps),
            F.batch_norm(x, *running, training=self.training, momentum=self.momentum or 0.0, eps=self.eps),
        ]
        pooled = torch.stack([copy.mean((2, 3)) for copy in copies], 1)
        ratio = self.gate(pooled)
        y = torch.zeros_like(x, dtype=self.weight.dtype)
        for k, copy in enumerate(copies):
            scaled = copy * self.weight[k, :, None, None] * ratio[:, k, None, None, None]
            y = y + scaled + self.bias[k, :, None, None]
        return y.to(x.dtype)


class UnderBackend(nn.Module):
    """A layer whose passes run in a named form."""

    def __init__(self, layer: nn.Module, name: Backend) -> None:
        super().__init__()
        self.layer = layer
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer in its form."""
        with backend(self.name):
            return cast("Tensor", self.layer(x))


class PlainSwitchNorm2d(nn.Module):
    """SN by its equations in plain autograd, with the whole of X in each step, as public code does it.

    Statistics of IN from X by `mean` and `var`, those of LN and BN from them, the mixtures of both, and a
    normalized X times γ plus β: five operations over X, each of which keeps what it is given.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` (N, C, H, W) with batch statistics."""
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        square = var + mean**2
        means, squares = [mean], [square]
        for dims in (1, 0):
            means.append(mean.mean(dims, keepdim=True))
            squares.append(square.mean(dims, keepdim=True))
        variances = [s - m**2 for s, m in zip(squares, means, strict=True)]
        mixed_mean, mixed_var = _mixture(self.mean_weight, means), _mixture(self.var_weight, variances)
        normed = (x - mixed_mean) / (mixed_var + self.eps).sqrt()
        y: Tensor = normed * self.weight + self.bias
        return y.to(x.dtype)


def _mixture(logits: Tensor, parts: list[Tensor]) -> Tensor:
    share = torch.softmax(logits, 0)
    return share[0] * parts[0] + share[1] * parts[1] + share[2] * parts[2]


class Copy(nn.Module):
    """A copy of X, the least that a pass over it can take; backward hands dY on."""

    def forward(self, x: Tensor) -> Tensor:
        """Copy `x`."""
        return x.clone()


Build = Callable[[int], nn.Module]


def exemplar(name: Backend, normalizers: Sequence[str] = ("in", "ln", "bn")) -> Build:
    """EN in a named form."""
    return lambda channels: UnderBackend(ExemplarNorm2d(channels, normalizers), name)


def with_relu(channels: int) -> nn.Module:
    """EN that has taken over the ReLU behind it."""
    pair = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    return UnderBackend(convert_norm(pair, "en", fuse=True), "auto")


CANDIDATES: dict[str, Build] = {
    "BN": nn.BatchNorm2d,
    "BN compiled": lambda channels: _compiled(nn.BatchNorm2d(channels)),
    "GN": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
    "SN plain": PlainSwitchNorm2d,
    "EN textbook": TextbookExemplarNorm2d,
    "EN reference": exemplar("reference"),
    "EN eager": exemplar("eager"),
    "EN compiled": exemplar("compiled"),
    "EN in a compiled network": lambda channels: _compiled(ExemplarNorm2d(channels)),
    "BN, ReLU": lambda channels: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
    "EN with ReLU": with_relu,
    "copy": lambda channels: Copy(),
}
"""Name → module for so many channels. The first is what ratios are relative to."""
ON_GPU: dict[str, Build] = {"SyncBN": nn.SyncBatchNorm, "EN triton": exemplar("triton")}
"""What runs on a GPU alone."""


def _compiled(layer: nn.Module) -> nn.Module:
    # In place, with the sizes as constants: what a network of fixed sizes gets.
    layer.compile(dynamic=False)
    return layer


def training_pass(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Any]:
    """One forward and backward pass of the layer, gradients of input and parameters included."""
    inputs = [x, *layer.parameters()]

    def run() -> Any:
        return torch.autograd.grad(layer(x), inputs, dy)

    return run
