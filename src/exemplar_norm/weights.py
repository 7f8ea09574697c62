"""`load_weights`: a checkpoint into a network of the family, whatever layout its normalizers are in."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm.base import MomentLayer
from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.replace import NormAct, one_normalizer_affine
from exemplar_norm.switch import SparseSwitchNorm

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
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
      what the BatchNorm network did (see `convert_norm`), the gate's last layer is set to zero and learns as
      slowly as after a conversion;
    - the layout of the public Switchable Normalization code, `weight` (1, C, 1, 1) and `running_mean`
      (1, C, 1), and of the public SSN code, into the layer of the same number of normalizers (as plain
      `load_state_dict` does too). Their order is in, ln, bn (ln, bn in the 1d layer; in, ln without bn).
      Outputs differ from that code's: it uses the unbiased variance of an instance, larger by S / (S − 1)
      over S positions. A missing `num_batches_tracked` is set to 0. SSN layers without `radius` in the
      checkpoint keep their own, and one log line says so.

    Args:
        model: the network; changed in place.
        checkpoint: a state dict, a checkpoint that holds one under "state_dict" or "model", or the file of
            either, loaded with `weights_only=True`.
        running_statistics: False leaves the running statistics of the normalizers as they are. For
            checkpoints of the public code's `using_moving_average=False`, whose buffers hold sums over
            batches that cannot be used: load without them, then call `calibrate`. Such sums cannot be told
            from averages reliably; only variances that are negative or not finite are refused.

    Returns:
        `model`.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ (all are listed); a `running_var` of the
            family's layers is negative or not finite. The model is unchanged.
    """
    state = _plain_state(checkpoint)
    # A shared layer has its state under each of its names.
    modules = model.named_modules(remove_duplicate=False)
    layers = [(name, module) for name, module in modules if isinstance(module, MomentLayer)]
    from_batch_norm = [
        layer
        for name, layer in layers
        if _translate(state, _prefix(model, name), name, layer, running_statistics)
        and isinstance(layer, ExemplarNorm)
    ]
    without_radius = _keep_radius(state, layers)
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
    for layer in from_batch_norm:
        layer.slow_gate()
    if without_radius:
        logger.warning("checkpoint without radius, own kept: %s", _listed("layers", without_radius))
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


def _translate(state: State, old: str, name: str, layer: MomentLayer, running_statistics: bool) -> bool:
    """Replace the layer's entries under the prefix `old` by its own; whether they were BatchNorm's."""
    new = f"{name}." if name else ""
    own = layer.state_dict()
    has_gate = any(prefix + "gate.fc1.weight" in state for prefix in (old, new))
    is_batch_norm = old + "running_mean" in state and not has_gate
    if isinstance(layer, ExemplarNorm) and is_batch_norm and "bn" not in layer.normalizers:
        raise ValueError(
            f"{name or 'model'}: BatchNorm's state needs 'bn' among the normalizers, got {layer.normalizers}"
        )
    layer.translate(state, old)
    found = {key: state.pop(old + key) for key in own if old + key in state}
    if old != new:  # a checkpoint made after the conversion
        layer.translate(state, new)
        found.update({key: state.pop(new + key) for key in own if new + key in state})
    if isinstance(layer, ExemplarNorm) and is_batch_norm:
        found = _from_batch_norm(name, layer, found)
    if not running_statistics:
        found.update({key: own[key] for key in _RUNNING if key in own})
    elif not _is_variance(found.get("running_var")):
        raise ValueError(
            f"{name or 'model'}: expected a running_var that is finite and not negative, got another, as "
            "sums over batches can be: load with running_statistics=False, then calibrate"
        )
    state.update({new + key: value for key, value in found.items()})
    return is_batch_norm


def _is_variance(value: Tensor | None) -> bool:
    return value is None or bool(((value >= 0) & value.isfinite()).all())


def _keep_radius(state: State, layers: list[tuple[str, MomentLayer]]) -> list[str]:
    """Complete the state of SSN layers that has no radius by their own; return their names."""
    names = []
    for name, layer in layers:
        prefix = f"{name}." if name else ""
        given = [prefix + key in state for key in ("mean_weight", "radius")]
        if isinstance(layer, SparseSwitchNorm) and given == [True, False]:
            state[prefix + "radius"] = layer.radius
            names.append(name or "model")
    return names


def _from_batch_norm(name: str, layer: ExemplarNorm, found: State) -> State:
    for key in ("weight", "bias"):
        if key in found and found[key].shape != (layer.num_features,):
            raise ValueError(
                f"{name or 'model'}: expected BatchNorm's {key} of shape {(layer.num_features,)}, "
                f"got {tuple(found[key].shape)}"
            )
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
