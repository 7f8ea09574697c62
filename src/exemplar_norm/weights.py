"""`load_weights`: a checkpoint into a network of the family, whatever layout its normalizers are in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm.base import MomentLayer
from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.replace import NormAct, one_normalizer_affine

State = dict[str, Tensor]

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_SSN_FLAGS = ("mean_fixed", "var_fixed")
# Names under which training scripts put the weights, and prefixes that wrappers leave.
_CONTAINERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    *,
    running_statistics: bool = True,
) -> nn.Module:
    """Load a checkpoint into a network whose normalizers are of the family, translating theirs.

    Understood, layer by layer:

    - the family's own state;
    - BatchNorm's state into an exemplar layer with "bn" among its normalizers: the network then computes
      what the BatchNorm network did (see `convert_norm`), and the gate's last layer is set to zero;
    - the layout of the public Switchable Normalization code, `weight` (1, C, 1, 1) and `running_mean`
      (1, C, 1), and of the public SSN code, into the layer of the same number of normalizers. Their order
      is in, ln, bn (ln, bn in the 1d layer; in, ln without bn). Outputs differ from that code's: it
      uses the unbiased variance of an instance, larger by S / (S − 1) over S positions. A
      missing `num_batches_tracked` is set to 0.

    Args:
        model: the network; changed in place.
        checkpoint: a state dict, a checkpoint that holds one under "state_dict" or "model", or the file of
            either, loaded with `weights_only=True`.
        running_statistics: False leaves the running statistics of the normalizers as they are. For
            checkpoints of the public code's `using_moving_average=False`, whose buffers hold sums over
            batches that cannot be used: load without them, then call `calibrate`.

    Returns:
        `model`.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; all are listed. The model is unchanged.
    """
    state = _plain_state(checkpoint)
    for name, layer in model.named_modules():
        if isinstance(layer, MomentLayer):
            _translate(state, _prefix(model, name), name, layer, running_statistics)
    own = model.state_dict()
    problems = [
        _listed("missing", [k for k in own if k not in state]),
        _listed("unexpected", [k for k in state if k not in own]),
        _listed(
            "of another shape",
            [
                f"{k} (expected {tuple(own[k].shape)}, got {tuple(state[k].shape)})"
                for k in own
                if k in state and own[k].shape != state[k].shape
            ],
        ),
    ]
    if any(problems):
        raise ValueError("checkpoint does not fit the network: " + "; ".join(p for p in problems if p))
    model.load_state_dict(state)
    return model


def _plain_state(checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> State:
    content: Mapping[str, Any] = (
        checkpoint
        if isinstance(checkpoint, Mapping)
        else torch.load(checkpoint, map_location="cpu", weights_only=True)
    )
    for container in _CONTAINERS:
        if isinstance(content.get(container), Mapping):
            content = content[container]
    state = dict(content)
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _prefix(model: nn.Module, name: str) -> str:
    """Where the checkpoint of the network before conversion has this layer's state."""
    parent, _, _ = name.rpartition(".")
    holds_activation = name != "" and isinstance(model.get_submodule(parent), NormAct)
    return f"{parent if holds_activation else name}." if name else ""


def _translate(state: State, old: str, name: str, layer: MomentLayer, running_statistics: bool) -> None:
    """Replace the layer's entries under the prefix `old` by those of its own layout."""
    new = f"{name}." if name else ""
    own = layer.state_dict()
    has_gate = any(prefix + "gate.fc1.weight" in state for prefix in (old, new))
    is_batch_norm = old + "running_mean" in state and not has_gate
    if isinstance(layer, ExemplarNorm) and is_batch_norm and "bn" not in layer.normalizers:
        raise ValueError(
            f"{name or 'model'}: BatchNorm's state needs 'bn' among the normalizers, got {layer.normalizers}"
        )
    found = {key: state.pop(old + key) for key in (*own, *_SSN_FLAGS) if old + key in state}
    if old != new:  # a checkpoint made after the conversion
        found.update({key: state.pop(new + key) for key in own if new + key in state})
    for key in _SSN_FLAGS:  # what they say is in the weights themselves: one-hot
        found.pop(key, None)
    if isinstance(layer, ExemplarNorm) and is_batch_norm:
        found = _from_batch_norm(layer, found)
    # (1, C, 1, 1), (1, C, 1) and (1) of the public codes hold the same numbers in the same order.
    found = {k: v.reshape(own[k].shape) if v.numel() == own[k].numel() else v for k, v in found.items()}
    if "running_mean" in found and "num_batches_tracked" not in found:
        found["num_batches_tracked"] = torch.zeros_like(own["num_batches_tracked"])
    if not running_statistics:
        found.update({key: own[key] for key in _RUNNING if key in own})
    state.update({new + key: value for key, value in found.items()})


def _from_batch_norm(layer: ExemplarNorm, found: State) -> State:
    gate = {f"gate.{key}": value.clone() for key, value in layer.gate.state_dict().items()}
    for key in ("gate.fc2.weight", "gate.fc2.bias"):
        gate[key].zero_()
    weight, bias = found.get("weight"), found.get("bias")
    device = layer.weight.device
    with torch.no_grad():
        new_weight, new_bias = one_normalizer_affine(
            layer,
            "bn",
            None if weight is None else weight.to(device),
            None if bias is None else bias.to(device),
        )
    return {**found, **gate, "weight": new_weight, "bias": new_bias}


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what}: {', '.join(names[:10])}{more}" if names else ""
