"""Triton kernels of the backward of EN's small map: within a sample, then over samples.

Tiles and legend: `map_tiles`.
"""

# What is below is compiled by Triton, which has types of its own.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

import triton
import triton.language as tl

from exemplar_norm.kernels.map_tiles import gate_tile, standardise


@triton.jit
def terms(
    n, k, c, inside, d_z, d_z_deviation, mean, var, set_mean, set_var, batch_mean, batch_var,
    weight, conv, ratio, d_scale, d_shift, N, C, groups, eps,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, GN: tl.constexpr, BN: tl.constexpr,
    DEVIATION: tl.constexpr,
):  # fmt: skip
    """What a sample's channels send back, (KP, X, Y) each but the last.

    Returns −∂/∂μ_k, ∂/∂σ²_k, m − μ_k, x̂_k, σ/σ_k, the gradient of λ γ, λ, and the direct gradient of v.
    """
    da = tl.load(d_scale + n * C + c, mask=inside, other=0.0)
    db = tl.load(d_shift + n * C + c, mask=inside, other=0.0)
    v, offset, rstd = standardise(
        n, k, c, inside, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps,
        K, IN, LN, GN, BN,
    )  # fmt: skip
    normed = offset * rstd
    own_ratio = tl.load(ratio + n * K + k, mask=k < K, other=0.0)
    mixed = own_ratio * tl.load(weight + k * C + c, mask=inside & (k < K), other=0.0)
    d_normed = mixed * db + d_z * tl.load(conv + c, mask=inside, other=0.0)
    to_var = mixed * da * rstd + d_normed * normed
    direct = tl.zeros_like(v)
    deviation = tl.zeros_like(normed)
    if DEVIATION:
        deviation = tl.sqrt(v + eps) * rstd
        through = d_z_deviation * deviation * tl.load(conv + C + c, mask=inside, other=0.0)
        to_var += through
        direct = tl.where(inside, tl.sum(through, 0)[None, :, :] / (2 * (v + eps)), 0.0)
    to_var = -0.5 * rstd * rstd * to_var
    return d_normed * rstd, to_var, offset, normed, deviation, da * rstd + db * normed, own_ratio, direct


@triton.jit
def mix_backward_kernel(
    mean, var, set_mean, set_var, batch_mean, batch_var, weight, conv, fc1_weight, fc2_weight,
    hidden, ratio, d_scale, d_shift, d_own_ratio, d_logits, d_hidden, d_z, ln_sums, N, C, groups, eps, H, R,
    RATIO: tl.constexpr,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, GN: tl.constexpr, BN: tl.constexpr,
    DEVIATION: tl.constexpr, KP: tl.constexpr, HP: tl.constexpr, RP: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """Gradients within a sample: of the gate's layers, of z, and the sums over channels that "ln" needs."""
    n = tl.program_id(0)
    k = tl.arange(0, KP)[:, None, None]
    outputs = C // R
    d_ratio = tl.zeros((KP,), tl.float32)
    for first in range(0, outputs, X):
        inside, c, v, offset, rstd = gate_tile(
            n, k, first, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps, R,
            K, IN, LN, GN, BN, RP, X,
        )  # fmt: skip
        da = tl.load(d_scale + n * C + c, mask=inside, other=0.0)
        db = tl.load(d_shift + n * C + c, mask=inside, other=0.0)
        gamma = tl.load(weight + k * C + c, mask=inside & (k < K), other=0.0)
        d_ratio += tl.sum(tl.sum(gamma * rstd * (da + db * offset), 2), 1)

    row = tl.arange(0, KP)
    h = tl.arange(0, HP)
    own_ratio = tl.load(ratio + n * K + row, mask=row < K, other=0.0)
    if RATIO:
        d_ratio += tl.load(d_own_ratio + n * K + row, mask=row < K, other=0.0)
    own_logits = own_ratio * (d_ratio - tl.sum(own_ratio * d_ratio, 0))
    tl.store(d_logits + n * K + row, own_logits, mask=row < K)
    of_fc2 = (row < K)[:, None] & (h < H)[None, :]
    w2 = tl.load(fc2_weight + row[:, None] * H + h[None, :], mask=of_fc2, other=0.0)
    activation = tl.load(hidden + n * H + h, mask=h < H, other=0.0)
    own_hidden = tl.sum(w2 * own_logits[:, None], 0) * (1.0 - activation * activation)
    tl.store(d_hidden + n * H + h, own_hidden, mask=h < H)
    i = tl.arange(0, KP)[:, None]
    j = tl.arange(0, KP)[None, :]
    of_fc1 = (h < H)[:, None, None] & ((i < K) & (j < K))[None, :, :]
    at = h[:, None, None] * (K * K)
    # Of z zᵀ, both ways: W and its transpose.
    w1 = tl.load(fc1_weight + at + (i * K + j)[None, :, :], mask=of_fc1, other=0.0)
    w1 += tl.load(fc1_weight + at + (j * K + i)[None, :, :], mask=of_fc1, other=0.0)
    symmetric = tl.sum(w1 * own_hidden[:, None, None], 0)

    widths = outputs * 2 if DEVIATION else outputs
    sum_mean = 0.0
    sum_var = 0.0
    for first in range(0, outputs, X):
        inside, c, v, offset, rstd = gate_tile(
            n, k, first, mean, var, set_mean, set_var, batch_mean, batch_var, N, C, groups, eps, R,
            K, IN, LN, GN, BN, RP, X,
        )  # fmt: skip
        z = tl.sum(offset * rstd * tl.load(conv + c, mask=inside, other=0.0), 2)
        own_z = tl.sum(symmetric[:, :, None] * z[None, :, :], 1)
        output = first + tl.arange(0, X)[None, :]
        z_mask = (i < K) & (output < outputs)
        tl.store(d_z + (n * K + i) * widths + output, own_z, mask=z_mask)
        own_deviation = own_z
        if DEVIATION:
            deviation = tl.sqrt(v + eps) * rstd
            z = tl.sum(deviation * tl.load(conv + C + c, mask=inside, other=0.0), 2)
            own_deviation = tl.sum(symmetric[:, :, None] * z[None, :, :], 1)
            tl.store(d_z + (n * K + i) * widths + outputs + output, own_deviation, mask=z_mask)
        if LN >= 0:
            to_mean, to_var, _, _, _, _, _, _ = terms(
                n, k, c, inside, own_z[:, :, None], own_deviation[:, :, None], mean, var, set_mean, set_var,
                batch_mean, batch_var, weight, conv, ratio, d_scale, d_shift, N, C, groups, eps,
                K, IN, LN, GN, BN, DEVIATION,
            )  # fmt: skip
            sum_mean += tl.sum(tl.sum(tl.sum(tl.where(k == LN, to_mean, 0.0), 2), 1), 0)
            sum_var += tl.sum(tl.sum(tl.sum(tl.where(k == LN, to_var, 0.0), 2), 1), 0)
    if LN >= 0:
        tl.store(ln_sums + 2 * n, sum_mean)
        tl.store(ln_sums + 2 * n + 1, sum_var)


@triton.jit
def collect_kernel(
    mean, var, set_mean, set_var, batch_mean, batch_var, weight, conv, ratio, d_scale, d_shift, d_z,
    ln_sums, correlations, hidden, d_logits, d_hidden, d_mean, d_var, d_batch_mean, d_batch_var,
    d_weight, d_bias, d_conv, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias,
    N, C, groups, eps, H, R, run, rate,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, GN: tl.constexpr, BN: tl.constexpr,
    OWN_BATCH: tl.constexpr, DEVIATION: tl.constexpr, KP: tl.constexpr, HP: tl.constexpr, X: tl.constexpr,
    Y: tl.constexpr,
):  # fmt: skip
    """Sums over samples: the parameters' gradients and those of m and v.

    A program takes X runs of `run` ≤ Y channels, which are whole groups of "gn" where that is mixed in; the
    last program takes the gate's linear layers.
    """
    pid = tl.program_id(0)
    if pid == tl.num_programs(0) - 1:
        linear_gradients(
            correlations, hidden, d_logits, d_hidden, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias,
            N, H, rate, K, KP, HP,
        )  # fmt: skip
    else:
        k = tl.arange(0, KP)[:, None, None]
        y = tl.arange(0, Y)[None, None, :]
        c = (pid * X + tl.arange(0, X)[None, :, None]) * run + y
        inside = (y < run) & (c < C)
        of_k = inside & (k < K)
        outputs = C // R
        widths = outputs * 2 if DEVIATION else outputs
        all_mean = tl.zeros((KP, X, Y), tl.float32)
        all_var = tl.zeros((KP, X, Y), tl.float32)
        sum_weight = tl.zeros((KP, X, Y), tl.float32)
        sum_bias = tl.zeros((1, X, Y), tl.float32)
        sum_conv = tl.zeros((1, X, Y), tl.float32)
        sum_conv_deviation = tl.zeros((1, X, Y), tl.float32)
        for n in range(0, N):
            at = d_z + (n * K + k) * widths + c // R
            own_z = tl.load(at, mask=of_k, other=0.0)
            own_deviation = own_z
            if DEVIATION:
                own_deviation = tl.load(at + outputs, mask=of_k, other=0.0)
            to_mean, to_var, _, normed, deviation, d_mixed, own_ratio, _ = terms(
                n, k, c, inside, own_z, own_deviation, mean, var, set_mean, set_var, batch_mean, batch_var,
                weight, conv, ratio, d_scale, d_shift, N, C, groups, eps, K, IN, LN, GN, BN, DEVIATION,
            )  # fmt: skip
            all_mean += to_mean
            all_var += to_var
            sum_weight += own_ratio * d_mixed
            sum_bias += tl.load(d_shift + n * C + c, mask=inside, other=0.0)
            sum_conv += tl.sum(own_z * normed, 0)[None, :, :]
            if DEVIATION:
                sum_conv_deviation += tl.sum(own_deviation * deviation, 0)[None, :, :]
        tl.store(d_weight + k * C + c, sum_weight, mask=of_k)
        tl.store(d_bias + c, sum_bias, mask=inside)
        tl.store(d_conv + c, sum_conv, mask=inside)
        if DEVIATION:
            tl.store(d_conv + C + c, sum_conv_deviation, mask=inside)
        if BN >= 0 and not OWN_BATCH:
            tl.store(d_batch_mean + c + 0 * k, -all_mean, mask=inside & (k == BN))
            tl.store(d_batch_var + c + 0 * k, all_var, mask=inside & (k == BN))
        for n in range(0, N):
            at = d_z + (n * K + k) * widths + c // R
            own_z = tl.load(at, mask=of_k, other=0.0)
            own_deviation = own_z
            if DEVIATION:
                own_deviation = tl.load(at + outputs, mask=of_k, other=0.0)
            to_mean, to_var, offset, _, _, _, _, direct = terms(
                n, k, c, inside, own_z, own_deviation, mean, var, set_mean, set_var, batch_mean, batch_var,
                weight, conv, ratio, d_scale, d_shift, N, C, groups, eps, K, IN, LN, GN, BN, DEVIATION,
            )  # fmt: skip
            shared_mean = tl.zeros((KP, X, Y), tl.float32)
            shared_var = tl.where(k == IN, to_var, 0.0)
            if LN >= 0:
                shared_mean = tl.where(k == LN, tl.load(ln_sums + 2 * n) / C, shared_mean)
                shared_var = tl.where(k == LN, tl.load(ln_sums + 2 * n + 1) / C, shared_var)
            if GN >= 0:
                shared_mean = tl.where(k == GN, tl.sum(to_mean, 2)[:, :, None] / run, shared_mean)
                shared_var = tl.where(k == GN, tl.sum(to_var, 2)[:, :, None] / run, shared_var)
            if OWN_BATCH:
                shared_mean = tl.where(k == BN, all_mean / N, shared_mean)
                shared_var = tl.where(k == BN, all_var / N, shared_var)
            # m − μ of "in" is zero whatever m is, so nothing comes back through it.
            own_mean = tl.where(k == IN, 0.0, to_mean - shared_mean + 2 * offset * shared_var)
            tl.store(d_mean + n * C + c, tl.sum(own_mean, 0)[None, :, :], mask=inside)
            tl.store(d_var + n * C + c, tl.sum(shared_var, 0)[None, :, :] + direct, mask=inside)


@triton.jit
def linear_gradients(
    correlations, hidden, d_logits, d_hidden, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias, N, H, rate,
    K: tl.constexpr, KP: tl.constexpr, HP: tl.constexpr,
):  # fmt: skip
    """Gradients of FC₁ and FC₂, sums of outer products over samples; FC₂'s times `rate`."""
    h = tl.arange(0, HP)
    row = tl.arange(0, KP)
    pair = tl.arange(0, KP * KP)
    sum_fc1 = tl.zeros((HP, KP * KP), tl.float32)
    sum_fc2 = tl.zeros((KP, HP), tl.float32)
    sum_bias1 = tl.zeros((HP,), tl.float32)
    sum_bias2 = tl.zeros((KP,), tl.float32)
    for n in range(0, N):
        own_hidden = tl.load(d_hidden + n * H + h, mask=h < H, other=0.0)
        own_logits = tl.load(d_logits + n * K + row, mask=row < K, other=0.0)
        inputs = tl.load(correlations + n * K * K + pair, mask=pair < K * K, other=0.0)
        activation = tl.load(hidden + n * H + h, mask=h < H, other=0.0)
        sum_fc1 += own_hidden[:, None] * inputs[None, :]
        sum_fc2 += own_logits[:, None] * activation[None, :]
        sum_bias1 += own_hidden
        sum_bias2 += own_logits
    tl.store(
        d_fc1_weight + h[:, None] * (K * K) + pair[None, :], sum_fc1,
        mask=(h < H)[:, None] & (pair < K * K)[None, :],
    )  # fmt: skip
    of_fc2 = (row < K)[:, None] & (h < H)[None, :]
    tl.store(d_fc2_weight + row[:, None] * H + h[None, :], sum_fc2 * rate, mask=of_fc2)
    tl.store(d_fc1_bias + h, sum_bias1, mask=h < H)
    tl.store(d_fc2_bias + row, sum_bias2 * rate, mask=row < K)
