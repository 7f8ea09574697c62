"""What is measured against what: BatchNorm, EN by backend, and EN as one would first write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exemplar_norm import ExemplarNorm2d, backend
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
        y = torch.zeros_like(x)
        for k, copy in enumerate(copies):
            scaled = copy * self.weight[k, :, None, None] * ratio[:, k, None, None, None]
            y = y + scaled + self.bias[k, :, None, None]
        return y


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


CANDIDATES: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "EN eager": lambda channels: UnderBackend(ExemplarNorm2d(channels), "eager"),
    "EN reference": lambda channels: UnderBackend(ExemplarNorm2d(channels), "reference"),
    "EN textbook": TextbookExemplarNorm2d,
}
"""Name → module for so many channels. The first is what ratios are relative to."""


def training_pass(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Any]:
    """One forward and backward pass of the layer, gradients of input and parameters included."""
    inputs = [x, *layer.parameters()]

    def run() -> Any:
        return torch.autograd.grad(layer(x), inputs, dy)

    return run
