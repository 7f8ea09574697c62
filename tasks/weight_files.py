"""Files of weights: torchvision's by name, state dicts, safetensors, checkpoints of this project."""

from __future__ import annotations

import json
import pickle
import re
import socket
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.errors import UserError, close_matches
from tasks.networks import Architecture

METADATA = "exemplar_norm"
"""Entry of a safetensors header that holds what the network is built from, as JSON."""
INPUTS = "inputs"
"""Entry of a checkpoint that holds what the network's inputs are."""

_SECONDS = 5  # without an answer; the socket's own default is none
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_OWN_PREFIX = "network."
# Names in torchvision's DenseNet files, from before a name could hold no dot.
_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.(\d\..*)")


class Weights(NamedTuple):
    """Weights as they lie in a file."""

    name: str
    state: dict[str, Tensor]
    config: dict[str, Any] | None = None
    """Architecture, epoch and inputs, where the file says them."""

    @property
    def made_with(self) -> Architecture | None:
        """The architecture that they are of, where the file says it."""
        return Architecture.of(self.config) if self.config else None


def read_weights(weights: str, network: str) -> Weights:
    """Fetch weights by their name for this network, or read a file.

    Raises:
        UserError: Neither a name nor a file, or it cannot be fetched or read.
    """
    choices = _named_weights(network)
    if weights in choices:
        return Weights(weights, _fetch(weights, network))
    path = Path(weights)
    if path.is_file():
        return read_weight_file(path)
    named = f"one of {', '.join(choices)} (for {network}), or " if choices else ""
    wrong = "which is a folder" if path.is_dir() else "which does not exist"
    raise UserError(
        f"model.weights: expected {named}a file of weights, got {weights!r}, {wrong}"
        f"{close_matches(weights, choices)}"
    )


def read_weight_file(path: Path) -> Weights:
    """Read a state dict, a safetensors file or a checkpoint.

    Raises:
        UserError: It cannot be read, or holds no weights.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def read_pickle(path: Path) -> Any:
    """Load a file of torch.save without running any code that it may hold.

    Raises:
        UserError: The file is cut short, no such file at all, or holds more than plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a checkpoint, or holds code, which is not run") from error
    except Exception as error:  # torch raises many kinds, by where the bytes stop making sense
        raise UserError(f"{path} is not a checkpoint, or one cut short ({type(error).__name__})") from error


def _named_weights(network: str) -> list[str]:
    from torchvision.models import get_model_weights, list_models

    return list(get_model_weights(network).__members__) if network in list_models() else []


def _fetch(weights: str, network: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    member = get_model_weights(network)[weights]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        state: dict[str, Tensor] = member.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"model.weights: {weights} of {network} cannot be fetched from {member.url} ({reason}): where "
            "there is no network, download it elsewhere and name the file"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return _plain(state)


def _read_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(metadata[METADATA]) if METADATA in metadata else None
        found = Weights(str(path), _plain(state), config)
        _ = found.made_with  # a header that lacks a part is refused here
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"model.weights: {path} is not a safetensors file of weights: {error}") from error
    return found


def _read_torch(path: Path) -> Weights:
    content = read_pickle(path)
    state = content
    for container in _CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(container), Mapping):
            state = state[container]
    values = list(state.values()) if isinstance(state, Mapping) else []
    named = all(isinstance(key, str) for key in state) if values else False
    if not named or not all(isinstance(value, Tensor) for value in values):
        raise UserError(f"model.weights: {path} holds no state dict")
    if "pytorch-lightning_version" not in content:
        return Weights(str(path), _plain(state))
    own = {k.removeprefix(_OWN_PREFIX): v for k, v in state.items() if k.startswith(_OWN_PREFIX)}
    settings = content.get("hyper_parameters", {})
    if not own or not settings.keys() >= set(Architecture._fields):
        raise UserError(f"model.weights: {path} is a Lightning checkpoint, but not of a classifier of tasks/")
    config = {"epoch": content["epoch"], **Architecture.of(settings)._asdict(), **content.get(INPUTS, {})}
    return Weights(str(path), _plain(own), config)


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Drop what wrappers put before the names, and translate names from before torch 0.4."""
    from timm.models import clean_state_dict

    return {_DENSENET.sub(r"\1\2", key): value for key, value in clean_state_dict(dict(state)).items()}
