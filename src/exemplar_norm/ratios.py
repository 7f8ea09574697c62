"""Reading the ratios that exemplar layers choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm

# What wrappers put in front of or between the names of a network's modules.
_WRAPPERS = ("module", "_orig_mod")


@contextmanager
def record_ratios(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record λ of the last forward pass of every exemplar layer, for the length of a `with` block.

    Nothing is computed for it and nothing is left behind: a hook reads what the gates return anyway. A
    compiled model runs uncompiled inside the block.

        with record_ratios(model) as ratios:
            model(images)
        ratios["layer1.0.bn1"]  # λ (N, K), detached; columns as in the layer's `normalizers`

    Args:
        model: any network, wrapped by data parallelism or `torch.compile` or not.

    Yields:
        A dict from module name, without the wrappers' "module." and "_orig_mod.", to λ (N, K). A layer
        appears once it has run.
    """
    ratios: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def keep(_gate: nn.Module, _inputs: Any, ratio: Tensor) -> None:
            ratios[name] = ratio.detach()

        return keep

    handles = [
        layer.gate.register_forward_hook(hook_for(_unwrapped(name)))
        for name, layer in model.named_modules()
        if isinstance(layer, ExemplarNorm)
    ]
    try:
        # A compiled graph does not see hooks that came after it.
        with torch.compiler.set_stance("force_eager"):
            yield ratios
    finally:
        for handle in handles:
            handle.remove()


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
