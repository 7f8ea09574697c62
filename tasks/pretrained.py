"""Start from pretrained weights: into the native network before its conversion, or into the converted one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from exemplar_norm import load_weights
from exemplar_norm.sources import read_source
from tasks.errors import UserError
from tasks.models import norm_settings
from tasks.networks import Architecture
from tasks.preflight import is_first_process
from tasks.weight_files import Weights, read_weights

_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads that some files were saved without


class Convert(Protocol):
    """Give a native network its normalizers."""

    def __call__(self, network: nn.Module, preserve: bool) -> nn.Module:
        """`preserve` is that of `convert_norm`."""


def load_pretrained(
    native: nn.Module, architecture: Architecture, weights: str, convert: Convert
) -> nn.Module:
    """Load weights of the native network, then convert it; or convert, then load weights of the converted.

    Layers whose shape follows the number of classes start fresh where the weights have another number.

    Args:
        native: The network with the normalizers of its library; changed in place.
        architecture: What is being built.
        weights: A name of torchvision's, such as DEFAULT, or a file.
        convert: Conversion to the architecture's normalizers.

    Raises:
        UserError: The weights are unknown, cannot be read or fetched, or are of another network.
    """
    found = read_weights(weights, architecture.network)
    _check_made_with(found, architecture)
    if _differing(found.state, native):
        # The normalizers decide which of the two a file is of.
        converted = convert(copy.deepcopy(native), preserve=False)
        if _differing(found.state, converted) < _differing(found.state, native):
            return _load(converted, found, architecture.num_classes)
    _load(native, found, architecture.num_classes)
    if not _keeps_function(native, architecture):
        _say(f"{weights}: converted to {architecture.norm!r}, which computes something else: fine-tune it")
    return convert(native, preserve=True)


def _check_made_with(found: Weights, wanted: Architecture) -> None:
    theirs = found.made_with
    if theirs is None:
        return
    if theirs.network != wanted.network:
        raise UserError(
            f"model.weights: {found.name} is of network {theirs.network}, expected {wanted.network}"
        )
    is_native = theirs.norm == "bn" and not theirs.norm_options
    if not is_native and _norm(theirs) != _norm(wanted):
        raise UserError(
            f"model.weights: {found.name} is of norm {theirs.norm} with options {theirs.norm_options or {}}: "
            f"expected bn, or {wanted.norm} with options {wanted.norm_options or {}}"
        )


def _norm(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    return architecture.norm, norm_settings(architecture.norm, architecture.norm_options)  # type: ignore[arg-type]


def _differing(state: Mapping[str, Tensor], network: nn.Module) -> int:
    """Number of names that only one of the two has."""
    return len(state.keys() ^ network.state_dict().keys())


def _load(network: nn.Module, found: Weights, num_classes: int) -> nn.Module:
    own = network.state_dict()
    state = dict(found.state)
    for head in _AUXILIARY:
        theirs, ours = ({k: v for k, v in of.items() if k.startswith(head)} for of in (state, own))
        if ours and not theirs:
            state |= ours
            _say(f"{found.name} is without the auxiliary head {head[:-1]}, which starts fresh")
        elif theirs and not ours:
            state = {key: value for key, value in state.items() if key not in theirs}
    # Files from before torch 0.4.1 do not count batches.
    state |= {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}
    head_names = [key for key in own if key in state and _is_head(own[key], state[key], num_classes)]
    if head_names:
        classes = len(state[head_names[0]])
        state |= {key: own[key] for key in head_names}
        _say(
            f"{found.name}: {classes} classes there, {num_classes} here: {', '.join(head_names)} start fresh"
        )
    try:
        return load_weights(network, state)
    except ValueError as error:
        raise UserError(f"model.weights: {found.name}: {error}") from error


def _is_head(own: Tensor, other: Tensor, num_classes: int) -> bool:
    """Whether two shapes differ in the number of classes alone, which comes first."""
    same_rank = own.dim() == other.dim() > 0
    return same_rank and len(own) == num_classes != len(other) and own.shape[1:] == other.shape[1:]


def _keeps_function(native: nn.Module, architecture: Architecture) -> bool:
    """Whether conversion keeps what the network computes; "cbn" starts as the BatchNorm that it came from."""
    sources = {source.normalizer for source in map(read_source, native.modules()) if source}
    norm = architecture.norm
    same = sources <= {norm} or (norm == "cbn" and sources == {"bn"})
    changed = {"eps", "groups"} & set(architecture.norm_options or {})
    return norm == "en" or (same and not changed)


def _say(text: str) -> None:
    if is_first_process():
        print(text, flush=True)
