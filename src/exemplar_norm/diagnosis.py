"""Why λ moves or does not: what happens inside the gates of exemplar layers, forward and backward.

Legend: N samples, C channels, K normalizers, D channels of the gate's descriptor, G = D / r, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.gate import Gate
from exemplar_norm.normalizers import is_recomputation
from exemplar_norm.ratios import unwrapped_name

SATURATED = 0.9
"""|h| from which a tanh unit counts as saturated: its slope 1 − h² is then below 0.19."""


@dataclass
class GateDiagnosis:
    """The gate of one layer in one forward pass, and its gradients once a backward pass went through.

    Standard deviations are over the samples of the batch, biased: those of a single sample are 0. Where
    several processes train together, samples and gradients are those of this process.

    Attributes:
        normalizers: Names of the K rows.
        channels: C.
        reduction: r.
        reduced: C/r, the numbers through which a row speaks (twice as many with `descriptor="mean_std"`).
        z_rms: Root mean square of z over samples and its channels, by row (K,).
        v_mean: Mean of v = z zᵀ over the samples (K, K).
        v_std: Standard deviation of v over the samples (K, K).
        seen_std: That of what FC₁ is given, which is v itself with `correlations="plain"` (K, K).
        saturated: Share of the tanh units, over samples and units, with |h| > 0.9.
        ratio_mean: Mean of λ over the samples (K,).
        ratio_std: Standard deviation of λ over the samples (K,).
        gradients: Euclidean norm of the gradient of the last backward pass: at λ (N, K) under "ratio", at the
            parameters under the names they have in the layer, "gate.fc2.weight" say; γ is "weight", β "bias".
            Those of FC₂ contain the layer's `gate_rate`. What got no gradient is missing.
    """

    normalizers: tuple[str, ...]
    channels: int
    reduction: int
    reduced: int
    z_rms: Tensor
    v_mean: Tensor
    v_std: Tensor
    seen_std: Tensor
    saturated: float
    ratio_mean: Tensor
    ratio_std: Tensor
    gradients: dict[str, float] = field(default_factory=dict)

    @property
    def v_spread(self) -> float:
        """‖std of v‖ / ‖mean of v‖, of all K × K entries: how far v differs between samples, beside itself.

        Where this is small, FC₁ gives nearly the same to every sample, and λ is nearly the same. 0 where all
        of v is 0.
        """
        mean = float(self.v_mean.norm())
        return float(self.v_std.norm()) / mean if mean else 0.0


@contextmanager
def diagnose_gates(model: nn.Module) -> Iterator[dict[str, GateDiagnosis]]:
    """Look into the gates of all exemplar layers, for the length of a `with` block, in any training loop.

        with diagnose_gates(model) as gates:
            loss_of(model(images)).backward()
        gates["layer1.0.bn1"].v_spread, gates["layer1.0.bn1"].gradients["ratio"]

    Each forward pass of a layer replaces what was found, each backward pass adds its gradients, as the
    optimiser of a single process would get them from this pass alone, whatever is in `.grad` already. Nothing
    is left behind, and neither output nor gradients change but by rounding: the gates run in their plain form
    inside the block, a compiled model uncompiled, both slower.

    Args:
        model: any network, wrapped by data parallelism or `torch.compile` or not.

    Yields:
        A dict from module name, without what PyTorch's wrappers put into it ("module.", "_orig_mod."), to a
        `GateDiagnosis`. A layer appears once it has run on at least one sample.

    Raises:
        ValueError: `model` is no Module, has no exemplar layers, or one whose gate is not this package's.
    """
    layers = _layers(model)
    found: dict[str, GateDiagnosis] = {}
    handles = []
    try:
        for name, layer in layers.items():
            handles += _watch(name, layer, found)
        # A compiled graph does not see hooks that came after it.
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> dict[str, ExemplarNorm]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"diagnose_gates: expected a Module, got {model!r}")
    layers = {
        unwrapped_name(model, name): layer
        for name, layer in model.named_modules()
        if isinstance(layer, ExemplarNorm)
    }
    if not layers:
        raise ValueError("diagnose_gates: expected a model with exemplar layers, got one without")
    for name, layer in layers.items():
        if not isinstance(layer.gate, Gate):
            got = type(layer.gate).__name__
            raise ValueError(f"diagnose_gates: {name!r} expected the gate of exemplar_norm, got {got}")
    return layers


def _watch(name: str, layer: ExemplarNorm, found: dict[str, GateDiagnosis]) -> list[Any]:
    """Hooks that keep `found[name]` up to date; any of them keeps the gate in its plain form."""
    inside: dict[str, Any] = {}

    # Before the gate runs: with correlations="standardised" it moves its averages as it does.
    def before(gate: Gate, inputs: tuple[Tensor, ...]) -> None:
        inside.clear()
        inside.update(_inside(gate, inputs[0].detach(), len(layer.normalizers)))

    def after(_gate: Gate, _inputs: tuple[Tensor, ...], ratio_NK: Tensor) -> None:
        if not inside:
            return
        # Recomputation finds the same again, and the gradients may go into the pass before it.
        if name not in found or not is_recomputation():
            found[name] = _diagnosis(layer, inside, ratio_NK.detach())
        diagnosis = found[name]
        if ratio_NK.requires_grad:
            # Into this pass's own record: where a layer runs twice, an earlier λ gets its gradient later.
            ratio_NK.register_hook(_keep_norm(lambda: diagnosis, "ratio"))

    handles: list[Any] = [
        layer.gate.register_forward_pre_hook(before),
        layer.gate.register_forward_hook(after),
    ]
    for key, parameter in layer.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_hook(_keep_norm(lambda: found.get(name), key)))
    return handles


def _diagnosis(layer: ExemplarNorm, inside: dict[str, Any], ratio_NK: Tensor) -> GateDiagnosis:
    C, r = layer.num_features, layer.reduction
    ratio: dict[str, Any] = {"ratio_mean": ratio_NK.mean(0), "ratio_std": ratio_NK.std(0, correction=0)}
    return GateDiagnosis(layer.normalizers, C, r, C // r, **inside, **ratio)


@torch.no_grad()
def _inside(gate: Gate, descriptor_NKD: Tensor, K: int) -> dict[str, Any]:
    """What the gate makes of its descriptor on the way to FC₂; empty for an empty batch."""
    if not len(descriptor_NKD):
        return {}
    conv, weight1, bias1, *_ = gate.weights(descriptor_NKD.dtype)
    G, R, _ = conv.shape
    z_NKG = (descriptor_NKD.unflatten(2, (G, R)) * conv.squeeze(2)).sum(3)
    v_NKK = torch.bmm(z_NKG, z_NKG.transpose(1, 2))
    given_NK2 = gate.correlate(descriptor_NKD, conv)
    # FC₁ of what it is given; standardising is part of these weights.
    hidden_NH = torch.tanh(F.linear(given_NK2, weight1, bias1))
    seen_std = given_NK2.std(0, correction=0).view(K, K)
    if gate.correlations == "standardised":
        seen_std = seen_std * gate._averages(descriptor_NKD.dtype)[1].view(K, K)
    return {
        "z_rms": z_NKG.square().mean((0, 2)).sqrt(),
        "v_mean": v_NKK.mean(0),
        "v_std": v_NKK.std(0, correction=0),
        "seen_std": seen_std,
        "saturated": float((hidden_NH.abs() > SATURATED).float().mean()),
    }


def _keep_norm(record: Callable[[], GateDiagnosis | None], key: str) -> Callable[[Tensor], None]:
    """A hook of a tensor that writes the norm of its gradient."""

    def keep(gradient: Tensor) -> None:
        diagnosis = record()
        if diagnosis is not None:
            diagnosis.gradients[key] = float(gradient.norm())

    return keep
