"""EN's small map as Triton kernels: two forward, two backward, with `exemplar_map` as their oracle."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from exemplar_norm.backends import refuse_double_backward
from exemplar_norm.kernels import map_backward_tiles, map_tiles
from exemplar_norm.kernels.exemplar_map import Found, MapParameters, MapSettings, Pair

# Larger ones would not stay in registers.
_MAX_HIDDEN, _MAX_REDUCTION, _MAX_GROUP = 64, 256, 256
# Of the backward's kernels: with four, the compiler spills on some GPUs.
WARPS = 8
_CHANNELS, _COLUMNS, _POOLED = 128, 32, 128  # of a tile


class Running(NamedTuple):
    """BN's running averages, to be moved by the batch's statistics."""

    mean: Tensor
    var: Tensor
    tracked: Tensor
    momentum: float | None
    values: int
    """How many values of a channel the batch has."""


def fits(channels: int, parameters: MapParameters, settings: MapSettings) -> bool:
    """Whether the map's sizes are within what the kernels hold in registers."""
    return (
        parameters.fc1_bias.shape[0] <= _MAX_HIDDEN
        and parameters.conv.shape[1] <= _MAX_REDUCTION
        and ("gn" not in settings.normalizers or channels // settings.groups <= _MAX_GROUP)
    )


def exemplar_map(
    mean: Tensor, var: Tensor, batch: Pair | None, running: Running | None, parameters: MapParameters,
    settings: MapSettings,
) -> Found:  # fmt: skip
    """See `exemplar_map.exemplar_map`; with `settings.own_batch` the statistics of "bn" are taken here.

    Args:
        mean: m (N, C).
        var: v (N, C).
        batch: (μ, σ²) of "bn", unless they are this batch's own or it is not mixed in.
        running: the averages to move by this batch's statistics, if any.
        parameters: γ, β and the gate's, float32.
        settings: the rest.
    """
    mu, sigma2 = batch or (None, None)
    found = _TritonMap.apply(mean, var, mu, sigma2, running, settings, *parameters)
    scale, shift, ratio, correlations = found
    return scale, shift, ratio, correlations


def _constants(C: int, p: MapParameters, settings: MapSettings) -> dict[str, Any]:
    """The compile-time arguments that the kernels share."""
    names, (H, K) = settings.normalizers, (p.fc1_bias.shape[0], len(settings.normalizers))
    rows = {key.upper(): names.index(key) if key in names else -1 for key in ("in", "ln", "gn", "bn")}
    return {
        **rows, "K": K, "DEVIATION": settings.with_deviation, "KP": triton.next_power_of_2(K),
        "HP": triton.next_power_of_2(H),
    }  # fmt: skip


def _sample_tile(p: MapParameters) -> dict[str, int]:
    width = triton.next_power_of_2(p.conv.shape[1])
    return {"RP": width, "X": max(_CHANNELS // width, 1)}


def _groups(settings: MapSettings) -> int:
    return settings.groups if "gn" in settings.normalizers else 1


def _pool(
    mean: Tensor, var: Tensor, running: Running | None, settings: MapSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of the sets of channels, and of the batch where that is this map's to take."""
    (N, C), names, G = mean.shape, settings.normalizers, _groups(settings)
    sets = N * ("ln" in names) + N * G * ("gn" in names)
    # "gn" has its place behind "ln" whether that is mixed in or not.
    set_mean, set_var = mean.new_empty(2, N * (1 + G))
    batch_mean, batch_var = mean.new_empty(2, C)
    programs = sets + (triton.cdiv(C, _POOLED) if settings.own_batch else 0)
    if programs:
        unused = (batch_mean, batch_var, batch_var)
        averages = (running.mean, running.var, running.tracked) if running else unused
        momentum = running.momentum if running else None
        count = running.values if running else 0
        map_tiles.pool_kernel[(programs,)](
            mean, var, set_mean, set_var, batch_mean, batch_var, *averages, momentum or 0.0,
            count / max(count - 1, 1), N, C, G, LN="ln" in names, GN="gn" in names, BATCH=settings.own_batch,
            MOVE_MEAN=running is not None, MOVE_VAR=running is not None and count > 1,
            CUMULATIVE=running is not None and momentum is None, BLOCK=_POOLED,
        )  # fmt: skip
    return set_mean, set_var, batch_mean, batch_var


class _TritonMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, mu: Tensor | None, sigma2: Tensor | None,
        running: Running | None, settings: MapSettings, *values: Tensor,
    ) -> Found:  # fmt: skip
        p = MapParameters(*(value.contiguous() for value in values))
        (N, C), K, H = mean.shape, len(settings.normalizers), p.fc1_bias.shape[0]
        statistics = _pool(mean, var, running, settings)
        if mu is not None and sigma2 is not None:
            statistics = (*statistics[:2], mu.contiguous(), sigma2.contiguous())
        correlations, hidden, ratio = (mean.new_empty(N, size) for size in (K * K, H, K))
        scale, shift = torch.empty_like(mean), torch.empty_like(mean)
        map_tiles.mix_kernel[(N,)](
            mean, var, *statistics, *p, correlations, hidden, ratio, scale, shift,
            N, C, _groups(settings), settings.eps, H, p.conv.shape[1],
            **_constants(C, p, settings), **_sample_tile(p),
        )  # fmt: skip
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(correlations)
        ctx.save_for_backward(mean, var, *statistics, correlations, hidden, ratio, *p)
        return scale, shift, ratio, correlations

    @staticmethod
    def backward(
        ctx: Any, d_scale: Tensor | None, d_shift: Tensor | None, d_ratio: Tensor | None, _: None
    ) -> tuple[Any, ...]:
        refuse_double_backward()
        mean, var, *rest = ctx.saved_tensors
        statistics, (correlations, hidden, ratio), p = rest[:4], rest[4:7], MapParameters(*rest[7:])
        settings, (N, C), (H, K) = ctx.settings, mean.shape, (hidden.shape[1], ratio.shape[1])
        constants, R = _constants(C, p, settings), p.conv.shape[1]
        upstream = [torch.zeros_like(mean) if d is None else d.contiguous() for d in (d_scale, d_shift)]
        own_ratio = ratio if d_ratio is None else d_ratio.contiguous()
        sizes = (N, C, _groups(settings), settings.eps, H, R)
        d_logits, d_hidden, ln_sums = (mean.new_empty(N, size) for size in (K, H, 2))
        d_z = mean.new_empty(N, K, p.conv.shape[0])
        map_backward_tiles.mix_backward_kernel[(N,)](
            mean, var, *statistics, p.weight, p.conv, p.fc1_weight, p.fc2_weight, hidden, ratio, *upstream,
            own_ratio, d_logits, d_hidden, d_z, ln_sums, *sizes, RATIO=d_ratio is not None, **constants,
            **_sample_tile(p), num_warps=WARPS,
        )  # fmt: skip
        run = C // settings.groups if "gn" in settings.normalizers else min(C, _COLUMNS)
        width = triton.next_power_of_2(run)
        across = max(_COLUMNS // width, 1)
        moments = torch.empty_like(mean), torch.empty_like(mean)
        batch = mean.new_empty(2, 1, C)
        gradients = [torch.empty_like(value) for value in p]
        gradients[1] = mean.new_empty(C)  # β's rows have one gradient
        map_backward_tiles.collect_kernel[(triton.cdiv(C, across * run) + 1,)](
            mean, var, *statistics, p.weight, p.conv, ratio, *upstream, d_z, ln_sums, correlations, hidden,
            d_logits, d_hidden, *moments, *batch, *gradients, *sizes, run, settings.rate,
            OWN_BATCH=settings.own_batch, X=across, Y=width, **constants, num_warps=WARPS,
        )  # fmt: skip
        gradients[1] = gradients[1].expand(K, C)
        is_given = "bn" in settings.normalizers and not settings.own_batch
        return *moments, *(batch if is_given else (None, None)), None, None, *gradients
