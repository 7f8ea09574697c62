"""Reading the ratios that exemplar layers choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm

# PyTorch's wrappers and the name of their one child. By class name: importing them would take seconds.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


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
        A dict from module name, without what PyTorch's wrappers put into it ("module.", "_orig_mod."), to
        λ (N, K). A layer appears once it has run.
    """
    ratios: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def keep(_gate: nn.Module, _inputs: Any, ratio: Tensor) -> None:
            ratios[name] = ratio.detach()

        return keep

    handles = [
        layer.gate.observe(hook_for(unwrapped_name(model, name)))
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


def unwrapped_name(model: nn.Module, name: str) -> str:
    """The name of a module of `model` without what PyTorch's wrappers put into it, as "module."."""
    parts, module = [], model
    for part in name.split(".") if name else ():
        if not _is_wrapper_of(module, part):
            parts.append(part)
        module = module.get_submodule(part)
    return ".".join(parts)


def _is_wrapper_of(module: nn.Module, child: str) -> bool:
    """Whether `module` is a wrapper and `child` what it wraps: a network may well call a part "module"."""
    classes = [c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.")]
    return list(module._modules) == [child] and any(_WRAPPERS.get(name) == child for name in classes)
