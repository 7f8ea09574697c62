"""Triton kernels of the passes over X, for both memory layouts from one source.

X is read in tiles of ROWS channels by POS positions through three strides: channels-first tensors come as
one sample of N·C channels with adjacent positions, channels-last ones as N samples with adjacent channels,
and the compiler lays the threads along whichever stride is 1. A pass that sums over positions may split
them among programs; a second kernel then combines the parts in a fixed order, so that results repeat.

Legend: N samples, C channels, S positions; statistics and coefficients are float32, (N, C).
"""

# What is below is compiled by Triton, which has types of its own.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_start(pid, C, stride_n, stride_c, ROWS: tl.constexpr):
    """Offset of a program's first element, its channels, and where their statistics are."""
    blocks = tl.cdiv(C, ROWS)
    n, block = pid // blocks, pid % blocks
    c = block * ROWS + tl.arange(0, ROWS)
    start = n.to(tl.int64) * stride_n + (block * ROWS).to(tl.int64) * stride_c
    return start, c, n.to(tl.int64) * C + c


@triton.jit
def moments_kernel(
    x, mean, spread, C, S, stride_n, stride_c, stride_s, chunk, rows,
    FINAL: tl.constexpr, ROWS: tl.constexpr, POS: tl.constexpr,
):  # fmt: skip
    """Mean and Σ (x − mean)² of `chunk` positions: exact within a tile, tiles pooled by Chan's formula.

    With FINAL, one program has all positions and writes the variance.
    """
    start, c, row = tile_start(tl.program_id(0), C, stride_n, stride_c, ROWS)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, S)
    pointers = x + start + tl.arange(0, ROWS)[:, None] * stride_c
    average = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    count = 0.0
    for first in range(begin, end, POS):
        s = first + tl.arange(0, POS)
        mask = (c < C)[:, None] & (s < end)[None, :]
        tile = tl.load(pointers + s[None, :] * stride_s, mask=mask, other=0.0).to(tl.float32)
        size = tl.minimum(end - first, POS).to(tl.float32)
        tile_mean = tl.sum(tile, 1) / size
        centred = tl.where(mask, tile - tile_mean[:, None], 0.0)
        delta = tile_mean - average
        total = count + size
        average += delta * (size / total)
        squares += tl.sum(centred * centred, 1) + delta * delta * (count * size / total)
        count = total
    part = tl.program_id(1) * rows
    tl.store(mean + part + row, average, mask=c < C)
    if FINAL:
        squares = squares / S
    tl.store(spread + part + row, squares, mask=c < C)


@triton.jit
def combine_moments_kernel(
    means, squares, mean, var, rows, S, chunk, parts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pool the parts of `moments_kernel`, in order."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    average = tl.zeros((BLOCK,), tl.float32)
    total_squares = tl.zeros((BLOCK,), tl.float32)
    count = 0.0
    for part in range(0, parts):
        size = tl.minimum(S - part * chunk, chunk).to(tl.float32)
        delta = tl.load(means + part * rows + row, mask=row < rows, other=0.0) - average
        own = tl.load(squares + part * rows + row, mask=row < rows, other=0.0)
        total = count + size
        average += delta * (size / total)
        total_squares += own + delta * delta * (count * size / total)
        count = total
    tl.store(mean + row, average, mask=row < rows)
    tl.store(var + row, total_squares / S, mask=row < rows)


@triton.jit
def tile(C, S, stride_n, stride_c, stride_s, ROWS: tl.constexpr, POS: tl.constexpr):
    """This program's tile (ROWS, POS): where it lies, what of it is inside; its channels and rows (ROWS)."""
    blocks = tl.cdiv(S, POS)
    pid = tl.program_id(0)
    start, c, row = tile_start(pid // blocks, C, stride_n, stride_c, ROWS)
    s = (pid % blocks) * POS + tl.arange(0, POS)
    mask = (c < C)[:, None] & (s < S)[None, :]
    at = start + tl.arange(0, ROWS)[:, None] * stride_c + s[None, :] * stride_s
    return at, mask, c, row


@triton.jit
def affine_kernel(
    x, residual, y, mean, scale, shift, C, S, stride_n, stride_c, stride_s,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, POS: tl.constexpr,
):  # fmt: skip
    """Y = A ⊙ (X − m) + B, with a residual added and a ReLU applied where asked for."""
    at, mask, c, row = tile(C, S, stride_n, stride_c, stride_s, ROWS, POS)
    m = tl.load(mean + row, mask=c < C, other=0.0)[:, None]
    a = tl.load(scale + row, mask=c < C, other=0.0)[:, None]
    b = tl.load(shift + row, mask=c < C, other=0.0)[:, None]
    value = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m) * a + b
    if RESIDUAL:
        value += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)  # NaN stays, as in torch
    tl.store(y + at, value, mask=mask)


@triton.jit
def reduce_kernel(
    dy, x, y, dz, mean, scale, shift, d_scale, d_shift,
    C, S, stride_n, stride_c, stride_s, chunk, rows,
    RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr, ROWS: tl.constexpr, POS: tl.constexpr,
):  # fmt: skip
    """Σ dY ⊙ (X − m) and Σ dY over `chunk` positions.

    With RELU, dY is first cut to where the output was positive, and written to `dz`; the output is read from
    `y` with FROM_OUTPUT, else it is computed again.
    """
    start, c, row = tile_start(tl.program_id(0), C, stride_n, stride_c, ROWS)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, S)
    m = tl.load(mean + row, mask=c < C, other=0.0)[:, None]
    offsets = start + tl.arange(0, ROWS)[:, None] * stride_c
    if RELU and not FROM_OUTPUT:
        a = tl.load(scale + row, mask=c < C, other=0.0)[:, None]
        b = tl.load(shift + row, mask=c < C, other=0.0)[:, None]
    products = tl.zeros((ROWS, POS), tl.float32)
    sums = tl.zeros((ROWS, POS), tl.float32)
    for first in range(begin, end, POS):
        s = first + tl.arange(0, POS)
        mask = (c < C)[:, None] & (s < end)[None, :]
        at = offsets + s[None, :] * stride_s
        gradient = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m
        if RELU:
            if FROM_OUTPUT:
                output = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
            else:
                output = centred * a + b
            gradient = tl.where(output <= 0, 0.0, gradient)
            tl.store(dz + at, gradient, mask=mask)
        products += gradient * centred
        sums += gradient
    part = tl.program_id(1) * rows
    tl.store(d_scale + part + row, tl.sum(products, 1), mask=c < C)
    tl.store(d_shift + part + row, tl.sum(sums, 1), mask=c < C)


@triton.jit
def combine_sums_kernel(
    d_scales, d_shifts, d_scale, d_shift, rows, parts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the parts of `reduce_kernel`, in order."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    products = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for part in range(0, parts):
        products += tl.load(d_scales + part * rows + row, mask=row < rows, other=0.0)
        sums += tl.load(d_shifts + part * rows + row, mask=row < rows, other=0.0)
    tl.store(d_scale + row, products, mask=row < rows)
    tl.store(d_shift + row, sums, mask=row < rows)


@triton.jit
def input_grad_kernel(
    dy, x, dx, mean, scale, dy_sum, g_mean, g_var, C, S, stride_n, stride_c, stride_s,
    ROWS: tl.constexpr, POS: tl.constexpr,
):  # fmt: skip
    """DX = A ⊙ dY + 2 g_v / S · (X − m) + (g_m − A · Σ dY) / S."""
    at, mask, c, row = tile(C, S, stride_n, stride_c, stride_s, ROWS, POS)
    m = tl.load(mean + row, mask=c < C, other=0.0)[:, None]
    a = tl.load(scale + row, mask=c < C, other=0.0)
    slope = 2.0 * tl.load(g_var + row, mask=c < C, other=0.0) / S
    moved = tl.load(g_mean + row, mask=c < C, other=0.0) - a * tl.load(dy_sum + row, mask=c < C, other=0.0)
    centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m
    gradient = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    value = a[:, None] * gradient + (slope[:, None] * centred + (moved / S)[:, None])
    tl.store(dx + at, value, mask=mask)
