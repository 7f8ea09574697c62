"""`convert_norm`: replace the normalization layers of an existing network, keeping its function."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.gate import largest_divisor
from exemplar_norm.registry import NORMS
from exemplar_norm.sources import Source, attachments, is_other_norm, placement, read_source

logger = logging.getLogger(__name__)

Norm = str | Callable[[int], nn.Module]


def convert_norm(
    model: nn.Module, norm: Norm = "en", *, preserve: bool = True, skip: Sequence[str] = (), **options: Any
) -> nn.Module:
    """Replace the normalization layers of `model`, in place.

    Replaced: BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d, GroupNorm, and timm's classes that
    hold a norm and an activation (the activation is kept). Left alone and listed in one log line: LayerNorm
    in any form, RMSNorm, frozen BatchNorm, anything else that looks like a normalizer. eps, momentum,
    device, dtype, training flag and `requires_grad` are kept; a module that is used in several places is
    converted once and stays shared.

    With `preserve`, affine parameters and running statistics are carried over; to "en" the
    function is unchanged in training and in evaluation: λ is 1/K at the start, so γ of the source's
    normalizer becomes K·γ and that of the others 0. ("gn" layers take the source's number of groups.)

    Args:
        model: any network, or a single normalization layer.
        norm: a key of NORMS, or a callable num_features → Module.
        preserve: keep the function (to "en") and the parameters (to the others).
        skip: patterns, as of a shell ("layer1.*"), of names that stay as they are.
        **options: passed to NORMS[norm]. Where C is not a multiple of `groups` or `reduction`, the largest
            divisor below is taken.

    Returns:
        `model`, or its replacement where it is itself a normalization layer.

    Raises:
        ValueError: the norm or an option is unknown; there was nothing to convert; a layer carries hooks or
            parametrizations, which would be lost; or the function cannot be kept. The model is then
            unchanged.
    """
    make = _maker(norm, options)
    replacements: dict[nn.Module, nn.Module] = {}
    kept = 0
    others: list[tuple[str, nn.Module]] = []
    for name, module in _candidates(model, skip):
        source = read_source(module)
        if _is_wanted(module, source, norm):
            kept += 1
        elif source is not None:
            replacements[module] = _replacement(name, source, make, model, preserve)
        elif is_other_norm(module):
            others.append((name, module))
    if not replacements and not kept:
        raise ValueError(
            "convert_norm: expected BatchNorm, InstanceNorm or GroupNorm layers to convert, found "
            f"{_summary(others) or 'no normalization layer'}"
        )
    if others:
        logger.warning("convert_norm left alone: %s", _summary(others))
    return _swap(model, replacements)


def _maker(norm: Norm, options: dict[str, Any]) -> Callable[[Source], nn.Module]:
    if callable(norm):
        if options:
            raise ValueError(
                f"options go with a key of NORMS; for a callable, expected none, got {sorted(options)}"
            )
        return lambda source: norm(source.num_features)
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)} or a callable, got {norm!r}")
    builder = NORMS[norm]

    def make(source: Source) -> nn.Module:
        given: dict[str, Any] = {"eps": source.eps}
        if source.has_momentum and "momentum" in builder.options:
            given["momentum"] = source.momentum
        given.update(options)
        if norm == "gn" or "gn" in given.get("normalizers", ()):
            given["groups"] = _fitting_groups(source, given.get("groups"))
        return builder(source.num_features, dims=source.dims, **given)

    return make


def _fitting_groups(source: Source, wanted: Any) -> Any:
    """The groups asked for, else the source's own, else 32, lowered to a divisor of C."""
    if wanted is None:
        wanted = source.groups if source.normalizer == "gn" else 32
    fits = isinstance(wanted, int) and wanted > 0  # anything else is for the layer to refuse
    return largest_divisor(source.num_features, wanted) if fits else wanted


def _candidates(model: nn.Module, skip: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Modules by name, each once, without those that `skip` names by any of their names or a parent's."""
    patterns = (skip,) if isinstance(skip, str) else tuple(skip)
    skipped = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            skipped.update(module.modules())
    return [(name, module) for name, module in model.named_modules() if module not in skipped]


def _is_wanted(module: nn.Module, source: Source | None, norm: Norm) -> bool:
    """Whether the layer is already what `norm` names; that counts as converted."""
    if callable(norm):
        return False
    if source is None:
        return type(module) in NORMS[norm].classes.values()
    is_plain = source.activation is None and type(module) is not nn.SyncBatchNorm
    return is_plain and source.normalizer == norm


def _replacement(
    name: str, source: Source, make: Callable[[Source], nn.Module], model: nn.Module, preserve: bool
) -> nn.Module:
    old = source.module
    lost = attachments(old)
    if lost:
        raise ValueError(
            f"{name or 'model'}: expected a {type(old).__name__} without hooks and parametrizations, which "
            f"its replacement would lose, got {', '.join(lost)}: remove them first, or use skip="
        )
    new = make(source)
    device, dtype = placement(old, model)
    new.to(device=device, dtype=dtype)
    if preserve:
        _carry(name, source, new)
    _copy_flags(source, new)
    after = source.activation
    return new if after is None else nn.Sequential(new, *after).train(old.training)


@torch.no_grad()
def _carry(name: str, source: Source, new: nn.Module) -> None:
    """Give `new` the source's affine parameters and running statistics, so that it computes the same."""
    if isinstance(new, ExemplarNorm):
        _check_preservable(name, source, new)
        row = new.normalizers.index(source.normalizer)
        new.weight.zero_()
        new.weight[row] = len(new.normalizers) * (1.0 if source.weight is None else source.weight)
        if source.bias is not None:
            new.bias[row] = source.bias
    else:
        for key in ("weight", "bias"):
            old, target = getattr(source, key), getattr(new, key, None)
            if old is not None and target is not None and target.shape == old.shape:
                target.copy_(old)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        old, target = getattr(source.module, key, None), getattr(new, key, None)
        if old is not None and target is not None:
            target.copy_(old)


def _check_preservable(name: str, source: Source, new: ExemplarNorm) -> None:
    kind, names = source.normalizer, new.normalizers
    where = f"{name or 'model'} ({type(source.module).__name__}, {kind!r})"
    anyway = "or preserve=False to convert without keeping the function"
    if kind not in names:
        raise ValueError(
            f"{where}: its function is kept only if {kind!r} is among the normalizers, got {names}: "
            f"pass normalizers={(*names, kind)}, {anyway}"
        )
    if kind == "gn" and new.groups != source.groups:
        raise ValueError(
            f"{where}: expected groups={source.groups}, got {new.groups}: leave groups out, {anyway}"
        )
    if kind == "in" and getattr(source.module, "running_mean", None) is not None:
        raise ValueError(
            f"{where}: expected track_running_stats=False, got True (exemplar layers keep averages for 'bn' "
            f"alone): skip the layer, {anyway}"
        )


def _copy_flags(source: Source, new: nn.Module) -> None:
    """Carry `requires_grad` and the training flag; what the source has no twin for follows its parameters."""
    flags = {key: p.requires_grad for key, p in source.module.named_parameters(recurse=False)}
    for key, parameter in new.named_parameters():
        parameter.requires_grad_(flags.get(key, any(flags.values()) or not flags))
    new.train(source.module.training)


def _swap(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[key] = replacements[child]
    return replacements.get(model, model)


def _summary(layers: Sequence[tuple[str, nn.Module]]) -> str:
    """One line: how many of which class, and where the first of each is."""
    counts = Counter(type(module).__name__ for _, module in layers)
    first = {type(module).__name__: name or "model" for name, module in reversed(layers)}
    return ", ".join(
        f"{count} × {kind} ({first[kind]}{', …' * (count > 1)})" for kind, count in counts.items()
    )
