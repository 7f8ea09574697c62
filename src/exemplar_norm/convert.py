"""`convert_norm`: replace the normalization layers of an existing network, keeping its function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from exemplar_norm.gate import largest_divisor
from exemplar_norm.registry import NORMS
from exemplar_norm.replace import replacement, summary, swap
from exemplar_norm.sources import Source, is_other_norm, read_source

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
        if _is_wanted(module, source, norm, options):
            kept += 1
        elif source is not None:
            replacements[module] = replacement(name, source, make, model, preserve)
        elif is_other_norm(module):
            others.append((name, module))
    if not replacements and not kept:
        raise ValueError(
            "convert_norm: expected BatchNorm, InstanceNorm or GroupNorm layers to convert, found "
            f"{summary(others) or 'no normalization layer'}"
        )
    if others:
        logger.warning("convert_norm left alone: %s", summary(others))
    return swap(model, replacements)


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


def _is_wanted(module: nn.Module, source: Source | None, norm: Norm, options: dict[str, Any]) -> bool:
    """Whether the layer is already what `norm` names; that counts as converted."""
    if callable(norm):
        return False
    if source is None:
        return type(module) in NORMS[norm].classes.values()
    if source.activation is not None or type(module) is nn.SyncBatchNorm:
        return False
    # One group, or as many as channels, is what "gn" comes to in a small layer.
    return source.normalizer == norm or (
        norm == "gn" and source.groups == _fitting_groups(source, options.get("groups", 32))
    )
