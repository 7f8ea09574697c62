"""Triton kernels of EN's small map: pooled statistics and the mixture.

A program has all K normalizers of a sample's channels before it: tiles are (K, X, Y), the channels c of a
tile being X neighbouring runs of Y. IN, LN, GN and BN are rows of that tile, −1 where the mixture lacks them.

Legend: N samples, C channels, G groups of "gn"; H hidden units, R inputs of a gate's channel group;
KP, HP, RP are K, H, R rounded up to powers of two. `set_mean` and `set_var` hold "ln" (N), then "gn" (N, G).
"""

# What is below is compiled by Triton, which has types of its own.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pool_kernel(
    mean, var, set_mean, set_var, batch_mean, batch_var, running_mean, running_var, tracked,
    momentum, unbiased, N, C, groups,
    LN: tl.constexpr, GN: tl.constexpr, BATCH: tl.constexpr, MOVE_MEAN: tl.constexpr,
    MOVE_VAR: tl.constexpr, CUMULATIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Statistics of every set of a sample's channels ("ln", "gn"), and of a channel's samples ("bn").

    The first programs take channels and move the running averages, the others a set each.
    """
    pid = tl.program_id(0)
    if BATCH:
        columns = tl.cdiv(C, BLOCK)
        if pid < columns:
            pool_batch(
                pid * BLOCK + tl.arange(0, BLOCK), mean, var, batch_mean, batch_var, running_mean,
                running_var, tracked, momentum, unbiased, N, C, MOVE_MEAN, MOVE_VAR, CUMULATIVE, BLOCK,
            )  # fmt: skip
        else:
            pool_set(pid - columns, mean, var, set_mean, set_var, N, C, groups, LN, GN, BLOCK)
    else:
        pool_set(pid, mean, var, set_mean, set_var, N, C, groups, LN, GN, BLOCK)


@triton.jit
def pool_batch(
    c, mean, var, batch_mean, batch_var, running_mean, running_var, tracked, momentum, unbiased, N, C,
    MOVE_MEAN: tl.constexpr, MOVE_VAR: tl.constexpr, CUMULATIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance over samples, and what they do to the running averages."""
    inside = c < C
    mu = tl.zeros((BLOCK,), tl.float32)
    for n in range(0, N):
        mu += tl.load(mean + n * C + c, mask=inside, other=0.0)
    mu = mu / N
    sigma2 = tl.zeros((BLOCK,), tl.float32)
    for n in range(0, N):
        offset = tl.load(mean + n * C + c, mask=inside, other=0.0) - mu
        sigma2 += tl.load(var + n * C + c, mask=inside, other=0.0) + offset * offset
    sigma2 = sigma2 / N
    tl.store(batch_mean + c, mu, mask=inside)
    tl.store(batch_var + c, sigma2, mask=inside)
    factor = momentum
    if CUMULATIVE:
        factor = 1.0 / tl.load(tracked).to(tl.float32)
    if MOVE_MEAN:
        old_mean = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(running_mean + c, old_mean + factor * (mu - old_mean), mask=inside)
    if MOVE_VAR:
        old_var = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(running_var + c, old_var + factor * (sigma2 * unbiased - old_var), mask=inside)


@triton.jit
def pool_set(
    number, mean, var, set_mean, set_var, N, C, groups,
    LN: tl.constexpr, GN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of one sample's channels, or of a group of them."""
    place = number
    size = C
    first = number * C
    if GN:
        size = C // groups
        first = number * size
        place = number + N
        if LN:
            is_group = number >= N
            size = tl.where(is_group, C // groups, C)
            first = tl.where(is_group, number - N, number) * size
            place = number
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        j = start + tl.arange(0, BLOCK)
        total += tl.load(mean + first + j, mask=j < size, other=0.0)
    mu = tl.sum(total, 0) / size
    spread = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        j = start + tl.arange(0, BLOCK)
        offset = tl.where(j < size, tl.load(mean + first + j, mask=j < size, other=0.0) - mu, 0.0)
        spread += tl.load(var + first + j, mask=j < size, other=0.0) + offset * offset
    tl.store(set_mean + place, mu)
    tl.store(set_var + place, tl.sum(spread, 0) / size)


@triton.jit
def standardise(
    n, k, c, inside, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, GN: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Of a sample's channels c: v (1, X, Y), m − μ_k and 1 / sqrt(σ²_k + ε) (KP, X, Y); zero outside."""
    m = tl.load(mean + n * C + c, mask=inside, other=0.0)
    v = tl.load(var + n * C + c, mask=inside, other=0.0)
    inside = inside & (k < K)
    mu = tl.where(inside, m, 0.0)
    sigma2 = tl.where(inside, v, 0.0)
    if LN >= 0 or GN >= 0:
        of_set = inside & ((k == LN) | (k == GN))
        at = tl.where(k == LN, n, N + n * groups + c // (C // groups))
        mu = tl.where(of_set, tl.load(set_mean + at, mask=of_set, other=0.0), mu)
        sigma2 = tl.where(of_set, tl.load(set_var + at, mask=of_set, other=0.0), sigma2)
    if BN >= 0:
        of_batch = inside & (k == BN)
        mu = tl.where(of_batch, tl.load(batch_mean + c + 0 * k, mask=of_batch, other=0.0), mu)
        sigma2 = tl.where(of_batch, tl.load(batch_var + c + 0 * k, mask=of_batch, other=0.0), sigma2)
    offset = tl.where(inside, m - mu, 0.0)
    return v, offset, tl.where(inside, 1.0 / tl.sqrt(sigma2 + eps), 0.0)


@triton.jit
def gate_tile(
    n, k, first, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps, R,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, GN: tl.constexpr, BN: tl.constexpr,
    RP: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """X of the gate's channel groups from `first` on: (inside, c, v, m − μ_k, 1 / sqrt(σ²_k + ε))."""
    g = first + tl.arange(0, X)[None, :, None]
    r = tl.arange(0, RP)[None, None, :]
    inside = (g < C // R) & (r < R)
    c = g * R + r
    v, offset, rstd = standardise(
        n, k, c, inside, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps,
        K, IN, LN, GN, BN,
    )  # fmt: skip
    return inside, c, v, offset, rstd


@triton.jit
def mix_kernel(
    mean, var, set_mean, set_var, batch_mean, batch_var,
    weight, bias, conv, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
    correlations, hidden, ratio, scale, shift, N, C, groups, eps, H, R,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, GN: tl.constexpr, BN: tl.constexpr,
    DEVIATION: tl.constexpr, KP: tl.constexpr, HP: tl.constexpr, RP: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """λ of a sample, and from it the sample's A and B; also what the backward needs of the gate."""
    n = tl.program_id(0)
    k = tl.arange(0, KP)[:, None, None]
    outputs = C // R
    correlation = tl.zeros((KP, KP), tl.float32)
    for first in range(0, outputs, X):
        inside, c, v, offset, rstd = gate_tile(
            n, k, first, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps, R,
            K, IN, LN, GN, BN, RP, X,
        )  # fmt: skip
        z = tl.sum(offset * rstd * tl.load(conv + c, mask=inside, other=0.0), 2)
        correlation += tl.sum(z[:, None, :] * z[None, :, :], 2)
        if DEVIATION:
            deviation = tl.sqrt(v + eps) * rstd
            z = tl.sum(deviation * tl.load(conv + C + c, mask=inside, other=0.0), 2)
            correlation += tl.sum(z[:, None, :] * z[None, :, :], 2)
    i = tl.arange(0, KP)[:, None]
    j = tl.arange(0, KP)[None, :]
    tl.store(correlations + n * K * K + i * K + j, correlation, mask=(i < K) & (j < K))

    h = tl.arange(0, HP)
    of_fc1 = (h < H)[:, None, None] & ((i < K) & (j < K))[None, :, :]
    w1 = tl.load(fc1_weight + h[:, None, None] * (K * K) + (i * K + j)[None, :, :], mask=of_fc1, other=0.0)
    activation = tl.sum(tl.sum(w1 * correlation[None, :, :], 2), 1)
    activation += tl.load(fc1_bias + h, mask=h < H, other=0.0)
    # tanh; exp(−2|x|) cannot overflow.
    small = tl.exp(-2.0 * tl.abs(activation))
    activation = tl.where(activation < 0, -1.0, 1.0) * (1.0 - small) / (1.0 + small)
    tl.store(hidden + n * H + h, activation, mask=h < H)

    row = tl.arange(0, KP)
    of_fc2 = (row < K)[:, None] & (h < H)[None, :]
    w2 = tl.load(fc2_weight + row[:, None] * H + h[None, :], mask=of_fc2, other=0.0)
    logits = tl.sum(w2 * activation[None, :], 1) + tl.load(fc2_bias + row, mask=row < K, other=0.0)
    logits = tl.where(row < K, logits, -float("inf"))
    odds = tl.exp(logits - tl.max(logits, 0))
    own_ratio = odds / tl.sum(odds, 0)
    tl.store(ratio + n * K + row, own_ratio, mask=row < K)

    for first in range(0, outputs, X):
        inside, c, v, offset, rstd = gate_tile(
            n, k, first, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps, R,
            K, IN, LN, GN, BN, RP, X,
        )  # fmt: skip
        of_k = inside & (k < K)
        mixed = rstd * own_ratio[:, None, None] * tl.load(weight + k * C + c, mask=of_k, other=0.0)
        b = tl.sum(mixed * offset + tl.load(bias + k * C + c, mask=of_k, other=0.0), 0)
        at = n * C + c
        tl.store(scale + at, tl.sum(mixed, 0)[None, :, :], mask=inside)
        tl.store(shift + at, b[None, :, :], mask=inside)
