"""The same passes on CPU, from the native primitives that run at memory speed there.

X seen as (1, N·C, S) turns the BatchNorm kernels into per-sample, per-channel ones; in channels-last
layout they run a sample at a time. Given float32 statistics and coefficients, they take an X of lower
precision as it is; other operations take float32 copies of pieces. Legend and definitions: `passes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from exemplar_norm import passes

_aten = torch.ops.aten

KEEPS_DTYPE = True

# |A·m| up to which A·X + (B − A·m) is used for A·(X − m) + B: rounding then adds at most about
# 64 · 2⁻²⁴ ≈ 4e-6 in float32, below what BatchNorm itself leaves. Beyond it X is centred first.
_MAX_UNCENTRED = 64.0

# Values a call of GroupNorm gets at most: its unused output then stays small, where a fresh one of X's size
# would cost as much in page faults as a pass over X.
_PIECE = 2**19

# Values of X in a piece that several operations pass over one after the other: by sums, by element-wise ones,
# by those in float32 where X is of lower precision.
_SUMMED, _CHAINED, _WIDENED = 2**18, 2**20, 2**19

# The channels-last kernels add up rows one by one, and the error of a mean grows with them: in larger maps
# some neighbouring positions make one row, and their moments are then pooled.
_ROWS = 1024

# Values of a row that the channels-last kernels take best.
_ROW = 512

# Values of a row of low precision below which the channels-first kernels lose to float32 copies.
_SHORT = 96

# Values of a sample up to which plain operations on several samples beat a kernel call for each.
_SMALL = 2**15


def _rows(x_NCS: Tensor) -> Tensor:
    return x_NCS.view(1, -1, x_NCS.shape[2])


def _images(x_NCS: Tensor) -> tuple[Tensor, ...]:
    """The samples as (1, C, 1, S): the channels-last kernels are chosen for four dimensions alone."""
    images: tuple[Tensor, ...] = x_NCS.unsqueeze(2).split(1)
    return images


def _fold(x_NCS: Tensor, f: int) -> Tensor:
    """`f` neighbouring positions as one of f times as many channels, (N, f·C, S/f); channels-last alone."""
    N, C, S = x_NCS.shape
    return x_NCS.transpose(1, 2).reshape(N, S // f, f * C).transpose(1, 2)


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.moments`."""
    N, C, S = x_NCS.shape
    if _is_short(x_NCS):
        return _cat(moments(x.float()) for (x,) in _pieces(_WIDENED, x_NCS))
    if x_NCS.is_contiguous() and is_narrow(x_NCS):
        mean, var = _batch_norm_moments(_rows(x_NCS))
        return mean.view(N, C), var.view(N, C)
    if x_NCS.is_contiguous():
        mean, var = _cat(map(_row_moments, x_NCS.view(N * C, S).split(max(_PIECE // S, 1))))
        return mean.view(N, C), var.view(N, C)
    if C * S <= _SMALL:
        return _cat(_plain_moments(x) for (x,) in _pieces(_SUMMED, x_NCS))
    f = -(-S // _ROWS)
    if f == 1:
        return _image_moments(x_NCS)
    blocks = (x_NCS[..., : S - S % f], f), (x_NCS[..., S - S % f :], 1)
    pairs = [_image_moments(_fold(block, n)) for block, n in blocks if block.shape[2]]
    means_NBC, vars_NBC = (torch.cat(parts, 1).view(N, -1, C) for parts in zip(*pairs, strict=True))
    share_B1 = means_NBC.new_tensor([S // f / S] * f + [S % f / S] * (S % f > 0))[:, None]
    mean_NC = (share_B1 * means_NBC).sum(1)
    return mean_NC, (share_B1 * (vars_NBC + (means_NBC - mean_NC[:, None]).square())).sum(1)


def is_narrow(x_NCS: Tensor) -> bool:
    """Whether results of X's dtype would lose digits."""
    return x_NCS.dtype not in (torch.float32, torch.float64)


def _is_short(x_NCS: Tensor) -> bool:
    """Whether rows of low precision are so short that float32 copies are faster."""
    return is_narrow(x_NCS) and x_NCS.is_contiguous() and x_NCS.shape[2] < _SHORT


def _wide(x_NCS: Tensor) -> Tensor:
    return x_NCS.float() if is_narrow(x_NCS) else x_NCS


def _cat(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pairs of pieces as a pair of wholes."""
    found = list(pairs)
    if len(found) == 1:
        return found[0]
    first, second = zip(*found, strict=True)
    return torch.cat(first), torch.cat(second)


def _plain_moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    x_NCS = _wide(x_NCS)
    mean_NC = x_NCS.mean(2)
    return mean_NC, torch.sub(x_NCS, mean_NC[..., None]).square_().mean(2)


def _row_moments(x_RS: Tensor) -> tuple[Tensor, Tensor]:
    """GroupNorm's statistics with every row a group; it also writes an output, which is not used."""
    R, S = x_RS.shape
    # eps = 0: the reciprocal standard deviation gives the variance back (0 for a constant channel).
    _, mean, rstd = torch.native_group_norm(x_RS.view(1, R, S), None, None, 1, R, S, R, 0.0)
    return mean.flatten(), rstd.flatten().square_().reciprocal_()


def _image_moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    means, variances = zip(*map(_batch_norm_moments, _images(x_NCS)), strict=True)
    return torch.stack(means), torch.stack(variances)


def _batch_norm_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    # Running statistics, which a momentum of 0 leaves alone, have the results in their dtype.
    running = x.new_ones(x.shape[1], dtype=torch.float32) if is_narrow(x) else None
    mean, var = torch.batch_norm_update_stats(x, running, running, 0.0)
    return mean, var


def affine(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor,
    residual_NCS: Tensor | None = None, relu: bool = False,
) -> None:  # fmt: skip
    """See `passes.affine`."""
    form = _affine_form(mean_NC, scale_NC)
    if residual_NCS is None and not relu:
        form(x_NCS, mean_NC, scale_NC, shift_NC, out)
        return
    added = () if residual_NCS is None else (residual_NCS,)
    for x, mean, scale, shift, y, *z in _pieces(_CHAINED, x_NCS, mean_NC, scale_NC, shift_NC, out, *added):
        form(x, mean, scale, shift, y)
        passes.finish(y, z[0] if z else None, relu)


def _pieces(values: int, x_NCS: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All of them by samples of about so many values, which stay in a cache for several operations."""
    N, C, S = x_NCS.shape
    step = max(values // (C * S), 1)
    if step >= N:
        yield x_NCS, *others
    else:
        yield from zip(*(t.split(step) for t in (x_NCS, *others)), strict=True)


def _affine_form(mean_NC: Tensor, scale_NC: Tensor) -> Callable[..., None]:
    return _affine_centred if _needs_centring(mean_NC, scale_NC) else _affine_uncentred


def _needs_centring(mean_NC: Tensor, scale_NC: Tensor) -> bool:
    lowest, highest = torch.aminmax(mean_NC * scale_NC)
    # Written so that a NaN is centred too.
    return not (-_MAX_UNCENTRED <= float(lowest) and float(highest) <= _MAX_UNCENTRED)


def _affine_centred(x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor) -> None:
    if is_narrow(x_NCS):
        _widened(passes.affine, [x_NCS], [mean_NC, scale_NC, shift_NC], out)
    else:
        passes.affine(x_NCS, mean_NC, scale_NC, shift_NC, out)


def _widened(
    run: Callable[..., None], values: Sequence[Tensor], coefficients: Sequence[Tensor], out: Tensor
) -> None:
    """`run` on float32 copies of pieces of the X-sized `values`, for an `out` of lower precision."""
    wholes = (*values, *coefficients, out)
    if out.is_contiguous():  # pieces may end within a sample
        wholes = tuple(t.reshape(-1, 1, *t.shape[2:]) for t in wholes)
    copies: list[Tensor] = []
    for *inputs, result in _pieces(_WIDENED, *wholes):
        # All pieces use the memory of the first, which thereby stays in a cache.
        copies = copies or [torch.empty_like(result, dtype=torch.float32) for _ in range(len(values) + 1)]
        *wide, wide_result = (copy[: len(result)] for copy in copies)
        run(*map(Tensor.copy_, wide, inputs), *inputs[len(values) :], wide_result)
        result.copy_(wide_result)


def _affine_uncentred(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor
) -> None:
    if x_NCS.is_contiguous():
        mean, scale, shift = (t.flatten() for t in (mean_NC, scale_NC, shift_NC))
        _batch_norm_affine(_rows(x_NCS), mean, scale, shift, _rows(out))
    elif is_narrow(x_NCS) and math.prod(x_NCS.shape[1:]) <= _SMALL:
        _widened(_affine_uncentred, [x_NCS], [mean_NC, scale_NC, shift_NC], out)
    elif is_narrow(x_NCS):
        for sample in zip(_images(x_NCS), mean_NC, scale_NC, shift_NC, _images(out), strict=True):
            _batch_norm_affine(*sample)
    else:
        intercept_NC = torch.addcmul(shift_NC, scale_NC, mean_NC, value=-1)
        torch.addcmul(intercept_NC[..., None], x_NCS, scale_NC[..., None], out=out)


def _batch_norm_affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """BatchNorm in evaluation, with these coefficients for weight and bias and a variance of one."""
    none = mean.new_empty(0)
    _aten.native_batch_norm.out(
        x, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0,
        out=out, save_mean=none, save_invstd=none.clone(),
    )  # fmt: skip


def reduce(dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.reduce`."""
    if _is_short(x_NCS):
        pieces = _pieces(_WIDENED, dy_NCS, x_NCS, mean_NC)
        return _cat(reduce(dy.float(), x.float(), mean) for dy, x, mean in pieces)
    if x_NCS.is_contiguous():
        dscale, dshift = _batch_norm_reduce(_rows(dy_NCS), _rows(x_NCS), mean_NC.flatten())
        return dscale.view_as(mean_NC), dshift.view_as(mean_NC)
    N, C, S = x_NCS.shape
    if C * S <= 2 * _SMALL:  # twice: it reads two tensors
        return _cat(passes.reduce(*map(_wide, p)) for p in _pieces(_SUMMED, dy_NCS, x_NCS, mean_NC))
    f = math.gcd(S, 2 ** int(math.log2(max(_ROW // C, 1))))
    images = _images(_fold(dy_NCS, f)), _images(_fold(x_NCS, f))
    pairs = [_batch_norm_reduce(*sample) for sample in zip(*images, mean_NC.repeat(1, f), strict=True)]
    dscale, dshift = (torch.stack(sums).view(N, f, C).sum(1) for sums in zip(*pairs, strict=True))
    return dscale, dshift


def reduce_relu(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor,
    y_NCS: Tensor | None, out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `passes.reduce_relu`."""
    pairs, wholes = [], (x_NCS, dy_NCS, mean_NC, scale_NC, shift_NC, out, out if y_NCS is None else y_NCS)
    form = _affine_form(mean_NC, scale_NC)
    for x, dy, mean, scale, shift, dz, y in _pieces(_CHAINED, *wholes):
        if y_NCS is None:
            form(x, mean, scale, shift, y)
        passes.cut(dy, y, dz)
        pairs.append(reduce(dz, x, mean))
    return _cat(pairs)


def _batch_norm_reduce(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """BatchNorm's weight and bias gradients at unit variance, its input gradient left out."""
    one = torch.ones_like(mean)
    _, dscale, dshift = _aten.native_batch_norm_backward(
        dy, x, one, None, None, mean, one, True, 0.0, [False, True, True]
    )
    return dscale, dshift


def input_grad(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, dy_sum_NC: Tensor, g_mean_NC: Tensor,
    g_var_NC: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """See `passes.input_grad`."""
    coefficients = passes.slope_and_offset(x_NCS, scale_NC, dy_sum_NC, g_mean_NC, g_var_NC)
    # By A, not by the slope: |A·m| says how many deviations the mean is large.
    form = _affine_form(mean_NC, scale_NC)

    def write(
        x: Tensor, dy: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, dx: Tensor
    ) -> None:
        form(x, mean, slope, offset, dx)
        dx.addcmul_(dy, scale[..., None])

    values, statistics = (x_NCS, dy_NCS), (mean_NC, scale_NC, *coefficients)
    if is_narrow(x_NCS):  # the terms may cancel: in low precision each would be rounded
        _widened(write, values, statistics, out)
    else:
        for piece in _pieces(_CHAINED, *values, *statistics, out):
            write(*piece)
