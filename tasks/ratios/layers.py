"""The layers of a network that mix normalizers, and reading what they choose."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.normalizers import is_recomputation
from exemplar_norm.ratios import unwrapped_name
from exemplar_norm.switch import SwitchNorm


def exemplar_layers(model: nn.Module) -> dict[str, ExemplarNorm]:
    """The exemplar layers by name; "network.", the part of a task's module, is left out."""
    return {name: layer for name, layer in _named_modules(model) if isinstance(layer, ExemplarNorm)}


def switch_layers(model: nn.Module) -> dict[str, SwitchNorm]:
    """The layers with one mixture for all samples, SwitchNorm and its sparse form, by name."""
    return {name: layer for name, layer in _named_modules(model) if isinstance(layer, SwitchNorm)}


def is_compiled(model: nn.Module) -> bool:
    """Whether any part of a network runs compiled."""
    return any(
        module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )


def short_name(name: str) -> str:
    """The name of a layer without "network.", the part of a task's module that nearly all layers are in."""
    return name.removeprefix("network.")


def full_names(model: nn.Module) -> dict[str, str]:
    """From the short names of the exemplar layers to those that `record_ratios` and `replace_ratios` use."""
    names = (unwrapped_name(model, name) for name, m in model.named_modules() if isinstance(m, ExemplarNorm))
    return {short_name(name): name for name in names}


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, ExemplarNorm | SwitchNorm):
            yield short_name(unwrapped_name(model, name)), module


class GateRows:
    """λ of every forward pass since the last `take`, by layer; several passes of a step follow each other.

    `record_ratios` keeps the last pass alone, and gives up compiled code for as long as it is open.

    Args:
        layers: Layers to read, by name.
    """

    def __init__(self, layers: dict[str, ExemplarNorm]) -> None:
        self._layers = layers
        self._rows: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Begin to read."""
        self.detach()
        self._handles = [
            layer.gate.observe(partial(self._hook, name)) for name, layer in self._layers.items()
        ]

    def detach(self) -> None:
        """Leave the layers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._rows = {}

    def take(self) -> dict[str, Tensor]:
        """λ (N, K) of each layer that has run since the last call."""
        rows = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in self._rows.items()}
        self._rows = {}
        return rows

    def keep(self, name: str, ratio: Tensor) -> None:
        """Note λ (N, K) of a layer's pass."""
        # Checkpointed activations are computed anew in the backward pass: the same samples again.
        if not is_recomputation():
            self._rows.setdefault(name, []).append(ratio.detach())

    def _hook(self, name: str, _gate: nn.Module, _inputs: Any, ratio: Tensor) -> None:
        self.keep(name, ratio)
