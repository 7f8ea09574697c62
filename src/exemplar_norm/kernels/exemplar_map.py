"""EN's small map (m, v) ↦ (A, B) as one autograd Function: stacked statistics, backward written by hand.

What plain autograd spreads over some 80 small kernels takes about 30 here. It is also the oracle of the
Triton kernels of the same map.

Legend: K normalizers, N samples, C channels, G outputs and R inputs of a channel group of the gate,
D = C or 2C channels of its descriptor. Statistics are (K, N, C): a normalizer's rows are one block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exemplar_norm.backends import refuse_double_backward

Pair = tuple[Tensor, Tensor]
Found = tuple[Tensor, Tensor, Tensor, Tensor]


class MapSettings(NamedTuple):
    """What the map hangs on besides tensors."""

    normalizers: tuple[str, ...]
    groups: int
    eps: float
    with_deviation: bool
    """Whether the gate sees sqrt((v + ε) / (σ²_k + ε)) too."""
    own_batch: bool
    """Whether "bn" is taken over this batch, so that its gradient goes back into the moments."""
    rate: float = 1.0
    """Factor on the gradients of FC₂."""


class MapParameters(NamedTuple):
    """γ, β (K, C) and the gate's weights, in the dtype of the statistics."""

    weight: Tensor
    bias: Tensor
    conv: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


def exemplar_map(
    mean: Tensor, var: Tensor, batch: Pair | None, parameters: MapParameters, settings: MapSettings
) -> Found:
    """A = Σ_k γ_k λ_k / sqrt(σ²_k + ε) and B = Σ_k γ_k λ_k x̂_k + Σ_k β_k, each (N, C), λ (N, K), v (N, K²).

    The gate's correlations v are for its averages and have no gradient.

    Args:
        mean: m (N, C).
        var: v (N, C).
        batch: (μ, σ²) of "bn", each (1, C); None where it is not among the normalizers.
        parameters: γ, β and the gate's.
        settings: the rest.
    """
    mu, sigma2 = batch or (None, None)
    scale, shift, ratio, correlations = _ExemplarMap.apply(mean, var, mu, sigma2, settings, *parameters)
    return scale, shift, ratio, correlations


class _ExemplarMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, mu: Tensor | None, sigma2: Tensor | None,
        settings: MapSettings, *values: Tensor,
    ) -> Found:  # fmt: skip
        p = MapParameters(*values)
        normed, rstd = standardise(mean, var, mu, sigma2, settings)
        z = _project(normed, rstd, var, p.conv, settings)
        correlations = torch.bmm(z.permute(1, 0, 2), z.permute(1, 2, 0)).flatten(1)
        hidden = torch.addmm(p.fc1_bias, correlations, p.fc1_weight.t()).tanh_()
        ratio = torch.softmax(torch.addmm(p.fc2_bias, hidden, p.fc2_weight.t()), 1)
        mixed = ratio.t()[:, :, None] * p.weight[:, None]
        scale, shift = (mixed * rstd).sum(0), mixed.mul_(normed).sum(0).add_(p.bias.sum(0))
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(correlations)
        ctx.save_for_backward(mean, var, mu, normed, rstd, z, correlations, hidden, ratio, *values)
        return scale, shift, ratio, correlations

    @staticmethod
    def backward(
        ctx: Any, d_scale: Tensor | None, d_shift: Tensor | None, d_own_ratio: Tensor | None, _: None
    ) -> tuple[Any, ...]:
        refuse_double_backward()
        # Once only: a recomputed activation is unpacked a single time.
        saved = ctx.saved_tensors
        if not torch.is_autocast_enabled(saved[0].device.type):
            return _map_backward(saved, ctx.settings, d_scale, d_shift, d_own_ratio)
        # backward() may be called inside of an autocast block, whose products would be of low precision.
        with torch.autocast(saved[0].device.type, enabled=False):
            return _map_backward(saved, ctx.settings, d_scale, d_shift, d_own_ratio)


def _map_backward(
    saved: tuple[Tensor, ...], settings: MapSettings,
    d_scale: Tensor | None, d_shift: Tensor | None, d_own_ratio: Tensor | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Gradients of the map's inputs and parameters, in the order of its arguments."""
    mean, var, mu, normed, rstd, z, correlations, hidden, ratio, *values = saved
    p = MapParameters(*values)
    d_scale, d_shift = (torch.zeros_like(mean) if d is None else d for d in (d_scale, d_shift))
    # Of γ λ: what reaches A through 1/σ, and B through x̂.
    to_scale = d_scale * rstd
    d_mixed = torch.addcmul(to_scale, d_shift, normed)
    d_ratio = (d_mixed * p.weight[:, None]).sum(2).t()
    if d_own_ratio is not None:
        d_ratio = d_ratio + d_own_ratio
    d_weight = torch.bmm(ratio.t()[:, None], d_mixed)[:, 0]
    d_z, gate_gradients = _gate_backward(d_ratio, z, correlations, hidden, ratio, p, settings.rate)
    mixed = ratio.t()[:, :, None] * p.weight[:, None]
    d_normed = mixed * d_shift
    d_conv, d_deviation = _project_backward(d_z, d_normed, normed, rstd, var, p.conv, settings)
    # Through x̂ = (m − μ)/σ and 1/σ: E = −∂/∂μ, H = ∂/∂σ² (times −2σ² before the last step).
    to_var = to_scale.mul_(mixed).addcmul_(d_normed, normed)
    d_var = torch.zeros_like(var)
    if d_deviation is not None:
        to_var += d_deviation
        d_var += d_deviation.sum(0) / (2 * (var + settings.eps))
    to_mean = d_normed.mul_(rstd)
    to_var.mul_(rstd).mul_(rstd).mul_(-0.5)
    d_mean, d_var, d_batch = _statistics_backward(mean, mu, to_mean, to_var, d_var, settings)
    d_bias = d_shift.sum(0).expand_as(p.bias)
    return d_mean, d_var, *d_batch, None, d_weight, d_bias, d_conv, *gate_gradients


def standardise(
    mean: Tensor, var: Tensor, mu: Tensor | None, sigma2: Tensor | None, settings: MapSettings
) -> Pair:
    """x̂ = (m − μ_k) / sqrt(σ²_k + ε) and 1 / sqrt(σ²_k + ε), each (K, N, C)."""
    N, C = mean.shape
    normed, rstd = mean.new_empty(2, len(settings.normalizers), N, C)
    for name, offset, spread in zip(settings.normalizers, normed, rstd, strict=True):
        if name == "in":
            torch.add(var, settings.eps, out=spread)
            offset.zero_()
        elif mu is not None and sigma2 is not None and name == "bn":
            spread.copy_(sigma2).add_(settings.eps)
            torch.sub(mean, mu, out=offset)
        else:
            sets = _sets(C, name, settings)
            m, v, offsets = (t.view(N, sets, -1) for t in (mean, var, offset))
            torch.sub(m, m.mean(2, keepdim=True), out=offsets)
            pooled = v.mean(2, keepdim=True).add_(offsets.square().mean(2, keepdim=True))
            spread.view_as(offsets).copy_(pooled.add_(settings.eps))
    rstd.rsqrt_()
    normed.mul_(rstd)
    return normed, rstd


def _sets(C: int, name: str, settings: MapSettings) -> int:
    return settings.groups if name == "gn" else 1


def _project(normed: Tensor, rstd: Tensor, var: Tensor, conv: Tensor, settings: MapSettings) -> Tensor:
    """The gate's grouped reduction of its descriptor: (K, N, G)."""
    weights = _grouped(conv, normed)
    z = (normed.view(*normed.shape[:2], *weights[0].shape) * weights[0]).sum(3)
    if not settings.with_deviation:
        return z
    deviation = rstd * torch.sqrt(var + settings.eps)
    return torch.cat([z, (deviation.view(*normed.shape[:2], *weights[1].shape) * weights[1]).sum(3)], 2)


def _grouped(conv: Tensor, normed: Tensor) -> Tensor:
    """The gate's reduction (G, R, 1) as weights of each part of the descriptor, (1 or 2, C / R, R)."""
    R = conv.shape[1]
    return conv.view(-1, normed.shape[2] // R, R)


def _gate_backward(
    d_ratio: Tensor, z: Tensor, correlations: Tensor, hidden: Tensor, ratio: Tensor, p: MapParameters,
    rate: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Gradients of z (K, N, G) and of FC₁ and FC₂."""
    K = ratio.shape[1]
    d_logits = torch._softmax_backward_data(d_ratio, ratio, 1, ratio.dtype)
    d_hidden = torch.ops.aten.tanh_backward(d_logits @ p.fc2_weight, hidden)
    d_correlations = (d_hidden @ p.fc1_weight).view(-1, K, K)
    symmetric = d_correlations + d_correlations.transpose(1, 2)
    d_z = torch.bmm(symmetric, z.permute(1, 0, 2)).permute(1, 0, 2)
    if rate != 1:  # from here on they go to FC₂ alone
        d_logits = d_logits * rate
    gradients = (d_hidden.t() @ correlations, d_hidden.sum(0), d_logits.t() @ hidden, d_logits.sum(0))
    return d_z, gradients


def _project_backward(
    d_z: Tensor, d_normed: Tensor, normed: Tensor, rstd: Tensor, var: Tensor, conv: Tensor,
    settings: MapSettings,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Add the gate's share to `d_normed`; return the weight's gradient and that of σ_in/σ_k times itself."""
    weights = _grouped(conv, normed)
    shape = (*normed.shape[:2], *weights.shape[1:])
    d_zs = d_z.reshape(*shape[:2], -1, shape[2]).unbind(2)
    d_normed.view(shape).addcmul_(d_zs[0][..., None], weights[0])
    d_weights, d_deviation = [_weight_gradient(d_zs[0], normed.view(shape))], None
    if settings.with_deviation:
        deviation = (rstd * torch.sqrt(var + settings.eps)).view(shape)
        d_weights.append(_weight_gradient(d_zs[1], deviation))
        d_deviation = (d_zs[1][..., None] * deviation).mul_(weights[1]).view_as(normed)
    return torch.cat(d_weights)[..., None], d_deviation


def _weight_gradient(d_z: Tensor, grouped: Tensor) -> Tensor:
    """Σ over normalizers and samples of d_z (K, N, G) times what was reduced (K, N, G, R): (G, R)."""
    G, R = grouped.shape[2:]
    return torch.bmm(d_z.reshape(-1, 1, G).permute(2, 1, 0), grouped.view(-1, G, R).transpose(0, 1))[:, 0]


def _statistics_backward(
    mean: Tensor, mu: Tensor | None, to_mean: Tensor, to_var: Tensor, d_var: Tensor, settings: MapSettings
) -> tuple[Tensor, Tensor, Pair | tuple[None, None]]:
    """From −∂/∂μ_k and ∂/∂σ²_k (K, N, C) to the gradients of m, v and of μ, σ² of "bn"."""
    N, C = mean.shape
    d_mean, d_batch = torch.zeros_like(mean), (None, None)
    for name, to_m, to_v in zip(settings.normalizers, to_mean, to_var, strict=True):
        if name == "in":  # m − μ is zero whatever m is
            d_var += to_v
            continue
        d_mean += to_m
        if mu is not None and name == "bn":
            sums = to_m.sum(0, keepdim=True), to_v.sum(0, keepdim=True)
            if not settings.own_batch:
                d_batch = -sums[0], sums[1]
                continue
            offset, shared_m, shared_v = mean - mu, sums[0] / N, sums[1] / N
        else:
            sets = _sets(C, name, settings)
            m, to_m, to_v = (t.view(N, sets, -1) for t in (mean, to_m, to_v))
            offset = m - m.mean(2, keepdim=True)
            shared_m, shared_v = to_m.mean(2, keepdim=True), to_v.mean(2, keepdim=True)
        d_mean.view_as(offset).sub_(shared_m).addcmul_(offset, 2 * shared_v)
        d_var.view_as(offset).add_(shared_v)
    return d_mean, d_var, d_batch
