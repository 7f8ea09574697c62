"""Reading the ratios that exemplar layers choose, and putting others in their place.

Legend: N samples, K normalizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.normalizers import is_recomputation

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


@contextmanager
def replace_ratios(
    model: nn.Module, how: Literal["shuffled", "uniform"] | Mapping[str, Tensor], *, seed: int = 0
) -> Iterator[None]:
    """Put other ratios in the place of λ, for the length of a `with` block.

    How far a network leans on each sample's own λ is what it loses without it:

        with replace_ratios(model, "shuffled"):
            model(images)  # every sample is normalized as another one of its batch would be

    "shuffled" gives each sample the λ of another sample of the batch, in each layer and forward pass by a new
    random cycle, so that no sample keeps its own. "uniform" is λ = 1/K. A mapping from the names that
    `record_ratios` uses to ratios sets λ of the layers in it: (K) the same for all samples, (N, K) one for
    each sample of the batch. The gates run as before, and `record_ratios` shows the ratios that are put in.
    A compiled model runs uncompiled inside the block.

    Args:
        model: any network, wrapped or not.
        how: what takes the place of λ.
        seed: of the cycles of "shuffled".

    Raises:
        ValueError: `model` has no exemplar layers, or a replacement is in force already; `how` is unknown,
            names no layer, or holds something else than ratios that are ≥ 0 and sum to 1; a batch of one
            sample is to be shuffled, or a batch has another number of samples than the ratios given.
    """
    layers = {
        unwrapped_name(model, name): layer
        for name, layer in model.named_modules()
        if isinstance(layer, ExemplarNorm)
    }
    replacements = _replacements(layers, how, seed)
    for name in replacements:
        if any(isinstance(hook, _Replacement) for hook in layers[name].gate._forward_hooks.values()):
            raise ValueError(f"replace_ratios: expected layers with their own ratios, got {name!r} replaced")
    # In front of all other hooks, which then see the ratios that the layer uses.
    handles = [
        layers[name].gate.register_forward_hook(hook, prepend=True) for name, hook in replacements.items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Replacement:
    """A forward hook of a gate that returns other ratios."""

    def __call__(self, _gate: nn.Module, _inputs: Any, ratio_NK: Tensor) -> Tensor:
        raise NotImplementedError


class _Given(_Replacement):
    """Ratios (K) or (N, K) as they are given."""

    def __init__(self, name: str, ratio: Tensor) -> None:
        self.name, self.ratio = name, ratio

    def __call__(self, _gate: nn.Module, _inputs: Any, ratio_NK: Tensor) -> Tensor:
        if self.ratio.ndim == 2 and len(self.ratio) != len(ratio_NK):
            raise ValueError(
                f"replace_ratios: {self.name!r} expected a batch of {len(self.ratio)} samples, as the ratios "
                f"given are, got {len(ratio_NK)}"
            )
        return self.ratio.to(ratio_NK).expand_as(ratio_NK)


class _Shuffled(_Replacement):
    """The ratios of other samples of the batch, along a random cycle through all of them."""

    def __init__(self, name: str, generator: torch.Generator) -> None:
        self.name, self.generator = name, generator
        self.source = torch.empty(0, dtype=torch.long)

    def __call__(self, _gate: nn.Module, _inputs: Any, ratio_NK: Tensor) -> Tensor:
        N = len(ratio_NK)
        if N == 1:
            raise ValueError(
                f"replace_ratios: {self.name!r} expected two samples or more to shuffle, got a batch of one"
            )
        # Activation checkpointing has to compute the same again.
        if not (is_recomputation() and len(self.source) == N):
            cycle = torch.randperm(N, generator=self.generator)
            self.source = torch.empty_like(cycle)
            self.source[cycle] = cycle.roll(1)
        return ratio_NK[self.source.to(ratio_NK.device)]


def _replacements(
    layers: Mapping[str, ExemplarNorm], how: str | Mapping[str, Tensor], seed: int
) -> dict[str, _Replacement]:
    """The hook of each layer whose ratios are replaced."""
    if not layers:
        raise ValueError("replace_ratios: expected a model with exemplar layers, got one without")
    if isinstance(how, Mapping):
        unknown = [name for name in how if name not in layers]
        if unknown:
            raise ValueError(f"replace_ratios: expected names among {', '.join(layers)}; got {unknown[0]!r}")
        return {name: _Given(name, _checked(name, layers[name], ratio)) for name, ratio in how.items()}
    if how == "shuffled":
        generator = torch.Generator().manual_seed(seed)
        return {name: _Shuffled(name, generator) for name in layers}
    if how == "uniform":
        counts = {name: len(layer.normalizers) for name, layer in layers.items()}
        return {
            name: _Given(name, torch.full((K,), 1 / K, dtype=torch.float64)) for name, K in counts.items()
        }
    raise ValueError(f'replace_ratios: expected "shuffled", "uniform" or ratios by layer, got {how!r}')


def _checked(name: str, layer: ExemplarNorm, ratio: Tensor) -> Tensor:
    K = len(layer.normalizers)
    if not isinstance(ratio, Tensor) or ratio.ndim not in (1, 2) or ratio.shape[-1] != K:
        got = tuple(ratio.shape) if isinstance(ratio, Tensor) else ratio
        raise ValueError(f"replace_ratios: {name!r} expected ratios ({K}) or (N, {K}), got {got}")
    # Ratios that were stored in half precision sum to 1 within about a hundredth.
    if not ((ratio >= 0).all() and ((ratio.sum(-1) - 1).abs() < 0.01).all()):
        raise ValueError(f"replace_ratios: {name!r} expected ratios ≥ 0 that sum to 1, got other values")
    return ratio


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
