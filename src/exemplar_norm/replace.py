"""Putting one normalization layer in the place of another, with all that hung on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set

import torch
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.sources import Source, attachments, own_parts, placement, setting


class NormAct(nn.Sequential):
    """A layer of the family, then the activation that the class it replaced held inside."""


def replacement(
    name: str,
    source: Source,
    make: Callable[[Source], nn.Module],
    model: nn.Module,
    preserve: bool,
    shared: Set[int],
) -> nn.Module:
    """A layer built by `make` in the place of the source, with its device, dtype, flags and activation.

    `shared` holds the ids of the model's tied tensors.

    Raises:
        ValueError: the source carries what its replacement would lose, or its function cannot be kept.
    """
    old = source.module
    lost = attachments(old, shared)
    if lost:
        raise ValueError(
            f"{name or 'model'}: expected a {type(old).__name__} without hooks, parametrizations, ties and a "
            f"forward of its own, which its replacement would lose, got {', '.join(lost)}: "
            "remove them first, or use skip="
        )
    new = make(source)
    device, dtype = placement(old, model)
    new.to(device=device, dtype=dtype)
    if preserve:
        _carry(name, source, new)
    _copy_flags(source, new)
    after = source.activation
    return new if after is None else NormAct(new, *after).train(old.training)


@torch.no_grad()
def _carry(name: str, source: Source, new: nn.Module) -> None:
    """Give `new` the source's parameters and running statistics, so that it computes the same."""
    if isinstance(new, ExemplarNorm):
        _check_preservable(name, source, new)
    own = _tensors(new)
    for key, value in _tensors(source.module).items():
        if key in own and own[key].shape == value.shape:
            own[key].copy_(value)
    if isinstance(new, ExemplarNorm) and not isinstance(source.module, ExemplarNorm):
        weight, bias = one_normalizer_affine(new, source.normalizer, source.weight, source.bias)
        new.weight.copy_(weight)
        new.bias.copy_(bias)
        new.slow_gate()


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def one_normalizer_affine(
    layer: ExemplarNorm, normalizer: str, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """γ and β (K, C) with which `layer`, at λ = 1/K, is that one normalizer with `weight` and `bias`.

    γ is K · weight for it and 0 for the others, β is bias and 0.
    """
    row = layer.normalizers.index(normalizer)
    new_weight, new_bias = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    new_weight[row] = len(layer.normalizers) * (1.0 if weight is None else weight)
    if bias is not None:
        new_bias[row] = bias
    return new_weight, new_bias


def _check_preservable(name: str, source: Source, new: ExemplarNorm) -> None:
    kind, names, old = source.normalizer, new.normalizers, source.module
    where = f"{name or 'model'} ({type(old).__name__}, {kind!r})"
    anyway = "or preserve=False to convert without keeping the function"
    # What a layer's function hangs on besides its state; groups of a layer without "gn" do nothing.
    fixed = ["eps"]
    if isinstance(old, ExemplarNorm):
        fixed += ["normalizers", "descriptor", "correlations", "reduction", "hidden"]
        fixed += ["groups"] * ("gn" in names)
    elif kind not in names:
        raise ValueError(
            f"{where}: its function is kept only if {kind!r} is among the normalizers, got {names}: "
            f"pass normalizers={(*names, kind)}, {anyway}"
        )
    elif new.gate_start != "zero":
        raise ValueError(
            f'{where}: its function is kept only with gate_start="zero", got {new.gate_start!r}: '
            f"leave gate_start out, {anyway}"
        )
    elif kind == "gn":
        fixed += ["groups"]
    for option in fixed:
        own, given = setting(old, option), setting(new, option)
        if own != given:
            raise ValueError(f"{where}: expected {option}={own}, got {given}: leave {option} out, {anyway}")
    if kind == "in" and getattr(old, "running_mean", None) is not None:
        raise ValueError(
            f"{where}: expected track_running_stats=False, got True (exemplar layers keep averages for 'bn' "
            f"alone): skip the layer, {anyway}"
        )


def _copy_flags(source: Source, new: nn.Module) -> None:
    """Carry `requires_grad` and the training flag; what the source has no twin for follows its parameters."""
    parts = own_parts(source.module)
    flags = {key: p.requires_grad for key, p in source.module.named_parameters(recurse=len(parts) > 1)}
    for key, parameter in new.named_parameters():
        parameter.requires_grad_(flags.get(key, any(flags.values()) or not flags))
    new.train(source.module.training)


def swap(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put every replacement where its source stands, in place; return the model or its own replacement."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[key] = replacements[child]
    return replacements.get(model, model)


def summary(layers: Sequence[tuple[str, nn.Module]]) -> str:
    """One line: how many of which class, and where the first of each is."""
    counts = Counter(type(module).__name__ for _, module in layers)
    first = {type(module).__name__: name or "model" for name, module in reversed(layers)}
    return ", ".join(
        f"{count} × {kind} ({first[kind]}{', …' * (count > 1)})" for kind, count in counts.items()
    )
