"""Layers whose output dies: its deviation falls below a hundredth of that at the start of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from exemplar_norm.base import MomentLayer
from exemplar_norm.ratios import unwrapped_name
from tasks.ratios.layers import short_name

SHARE = 0.01
"""Share of a layer's first deviation below which it is called dying."""
_NAMED = 3


class Dying(NamedTuple):
    """A layer whose output has lost its deviation.

    Attributes:
        epoch: Epoch, from 0, after which it was found.
        step: The optimiser step.
        layer: Its name.
        before: Deviation of its output at the start of training.
        after: The deviation when it was found.
    """

    epoch: int
    step: int
    layer: str
    before: float
    after: float


def scaling_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that normalize channels and scale them by a γ of their own, by name."""
    return {
        short_name(unwrapped_name(model, name)): layer
        for name, layer in model.named_modules()
        if isinstance(layer, MomentLayer | _NormBase | nn.GroupNorm)
        and getattr(layer, "weight", None) is not None
    }


class OutputDeviations:
    """The deviation of what layers return: root of the variance over samples and positions, mean of channels.

    The mean of a channel, which β sets, does not count.

    Args:
        layers: Layers to read, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        self._found: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Begin to read."""
        self.detach()
        self._handles = [
            layer.register_forward_hook(partial(self._hook, name)) for name, layer in self.layers.items()
        ]

    def detach(self) -> None:
        """Leave the layers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> dict[str, float]:
        """The deviation of each layer in the last pass that was read, and forget it."""
        found, self._found = self._found, {}
        if not found:
            return {}
        values = torch.stack([value.float() for value in found.values()]).tolist()  # one wait for a GPU
        return dict(zip(found, values, strict=True))

    def _hook(self, name: str, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.numel():
            values = output.detach()
            values = values if values.dtype == torch.float64 else values.float()
            dims = [dim for dim in range(values.ndim) if dim != 1]
            self._found[name] = values.var(dims, correction=0).mean().sqrt()


def in_words(dying: Sequence[Dying]) -> str:
    """One line on layers that have begun to die: which, from what to what, and what to do."""
    first = sorted(dying, key=lambda one: one.after / one.before)
    named = "; ".join(f"{one.layer} from {one.before:.3g} to {one.after:.3g}" for one in first[:_NAMED])
    more = f"; and {len(first) - _NAMED} others" if len(first) > _NAMED else ""
    which = "a layer is" if len(first) == 1 else f"{len(first)} layers are"
    return (
        f"{which} dying: the deviation of the output fell below {100 * SHARE:g} % of that at the start of "
        f"training ({named}{more}); lower model.lr, or model.norm_weight_decay where it is above 0"
    )
