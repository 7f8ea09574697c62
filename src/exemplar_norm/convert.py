"""`convert_norm`: replace the normalization layers of an existing network, keeping its function."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from exemplar_norm.fuse import fuse_relu
from exemplar_norm.replace import replacement, summary, swap
from exemplar_norm.sources import is_other_norm, read_source, shared_tensors
from exemplar_norm.targets import Norm, choose_target

logger = logging.getLogger(__name__)

Layers = list[tuple[str, nn.Module]]


def convert_norm(
    model: nn.Module,
    norm: Norm = "en",
    *,
    preserve: bool = True,
    skip: Sequence[str] = (),
    fuse: bool = False,
    **options: Any,
) -> nn.Module:
    """Replace the normalization layers of `model`, in place.

    Replaced: BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d, GroupNorm, and timm's classes that
    hold a norm and an activation (the activation is kept). Left alone with all that is inside, and listed in
    one log line: LayerNorm in any form, RMSNorm, frozen BatchNorm, other layers of the family, anything else
    that looks like a normalizer. eps, momentum, device, dtype, training flag, `requires_grad`, and whether
    and where statistics are synchronised are kept; a module that is used in several places is converted
    once and stays shared.

    A layer that is already what `norm` and the options name stays the same object, so that converting
    twice changes nothing. With other options it is built anew: those that are not given are its own.

    With `preserve`, affine parameters and running statistics are carried over; to "en" the
    function is unchanged in training and in evaluation: λ is 1/K at the start, so γ of the source's
    normalizer becomes K·γ and that of the others 0. ("gn" layers take the source's number of groups.)

    Args:
        model: any network, or a single normalization layer.
        norm: a key of NORMS or its entry, or a callable num_features → Module. A layer of a callable that is
            a class, or of the class that a function builds, is already wanted (where it can be replaced:
            with the settings that the function gives it).
        preserve: keep the function (to "en") and the parameters (to the others).
        skip: patterns, as of a shell ("layer1.*"), of names that stay as they are.
        fuse: let the family's layers take over the ReLU that follows them, and the residual sum before it,
            where that can be seen: one behind the other in a Sequential, the stems and blocks of ResNets, the
            blocks of Inception networks. Fewer passes over memory and, but behind a sum, X as all that a
            layer and its ReLU keep. State dicts stay as they are; a hook on such a layer sees what the ReLU
            gave.
        **options: passed to NORMS[norm]. Where C is not a multiple of `groups` or `reduction`, the largest
            divisor below is taken.

    Returns:
        `model`, or its replacement where it is itself a normalization layer.

    Raises:
        ValueError: the norm, an option or its value is unknown; there was nothing to convert; a layer carries
            hooks, parametrizations, tied parameters or a forward of its own, which would be lost; or the
            function cannot be kept. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a Module, got {model!r}")
    found, skipped = _split(model, skip)
    target = choose_target(norm, options, [module for _, module in found])
    shared = shared_tensors(model)
    replacements: dict[nn.Module, nn.Module] = {}
    kept = 0
    others: Layers = []
    done: set[nn.Module] = set()  # with their parts, which nothing else is to touch
    for name, module in found:
        if module in done:
            continue
        source = target.read(module)
        if target.is_wanted(module, source):
            kept += 1
        elif source is not None:
            replacements[module] = replacement(name, source, target.build, model, preserve, shared)
        elif is_other_norm(module):
            others.append((name, module))
        else:
            continue
        done.update(module.modules())
    if not replacements and not kept:
        raise ValueError(f"convert_norm: {_nothing(others, skipped)}")
    if others:
        logger.warning("convert_norm left alone: %s", summary(others))
    model = swap(model, replacements)
    if fuse and not fuse_relu(model):
        logger.warning("convert_norm: fuse=True found no layer of the family with a ReLU behind it")
    return model


def _split(model: nn.Module, skip: Sequence[str]) -> tuple[Layers, Layers]:
    """Modules by name, each once: those to look at, and those that `skip` names by any name or a parent's."""
    several = isinstance(skip, Iterable) and not isinstance(skip, str)
    patterns = tuple(skip) if several else (skip,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"skip: expected patterns of names, got {skip!r}")
    skipped = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            skipped.update(module.modules())
    named = list(model.named_modules())
    return [n for n in named if n[1] not in skipped], [n for n in named if n[1] in skipped]


def _nothing(others: Layers, skipped: Layers) -> str:
    """That there was nothing to convert, and what there was instead."""
    spared = [(name, module) for name, module in skipped if read_source(module) or is_other_norm(module)]
    found = [summary(others)] if others else []
    found += [f"{summary(spared)} that skip= names"] if spared else []
    return (
        "expected BatchNorm, InstanceNorm or GroupNorm layers to convert, found "
        f"{' and '.join(found) or 'no normalization layer'}"
    )
