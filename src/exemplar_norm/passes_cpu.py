"""The same passes on CPU, from the native primitives that run at memory speed there.

X seen as (1, N·C, S) turns the BatchNorm kernels into per-sample, per-channel ones; in channels-last
layout they run a sample at a time. Legend and definitions: `passes`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exemplar_norm import passes

_aten = torch.ops.aten

KEEPS_DTYPE = False

# |A·m| up to which A·X + (B − A·m) is used for A·(X − m) + B: rounding then adds at most about
# 64 · 2⁻²⁴ ≈ 4e-6 in float32, below what BatchNorm itself leaves. Beyond it X is centred first.
_MAX_UNCENTRED = 64.0

# Values a call of GroupNorm gets at most: its unused output then stays small, where a fresh one of X's size
# would cost as much in page faults as a pass over X.
_PIECE = 2**19

# Values of X that a second operation still finds in the cache (1 MB of float32).
_CACHED = 2**18

# The channels-last kernel adds up positions one by one, and its error grows with them: larger maps are taken
# in blocks whose moments are then pooled.
_BLOCK = 1024


def _rows(x_NCS: Tensor) -> Tensor:
    return x_NCS.view(1, -1, x_NCS.shape[2])


def _images(x_NCS: Tensor) -> tuple[Tensor, ...]:
    """The samples as (1, C, 1, S): the channels-last kernels are chosen for four dimensions alone."""
    images: tuple[Tensor, ...] = x_NCS.unsqueeze(2).split(1)
    return images


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.moments`."""
    N, C, S = x_NCS.shape
    if x_NCS.is_contiguous():
        pieces = x_NCS.view(N * C, S).split(max(_PIECE // S, 1))
        mean, var = (torch.cat(parts) for parts in zip(*map(_row_moments, pieces), strict=True))
        return mean.view(N, C), var.view(N, C)
    blocks = x_NCS.split(_BLOCK, dim=2)
    if len(blocks) == 1:
        return _block_moments(x_NCS)
    means_BNC, vars_BNC = (torch.stack(p) for p in zip(*map(_block_moments, blocks), strict=True))
    share_B11 = x_NCS.new_tensor([block.shape[2] / S for block in blocks])[:, None, None]
    mean_NC = (share_B11 * means_BNC).sum(0)
    return mean_NC, (share_B11 * (vars_BNC + (means_BNC - mean_NC).square())).sum(0)


def _row_moments(x_RS: Tensor) -> tuple[Tensor, Tensor]:
    """GroupNorm's statistics with every row a group; it also writes an output, which is not used."""
    R, S = x_RS.shape
    # eps = 0: the reciprocal standard deviation gives the variance back (0 for a constant channel).
    _, mean, rstd = torch.native_group_norm(x_RS.view(1, R, S), None, None, 1, R, S, R, 0.0)
    return mean.flatten(), rstd.flatten().square_().reciprocal_()


def _block_moments(block_NCS: Tensor) -> tuple[Tensor, Tensor]:
    pairs = [torch.batch_norm_update_stats(image, None, None, 0.0) for image in _images(block_NCS)]
    means, variances = zip(*pairs, strict=True)
    return torch.stack(means), torch.stack(variances)


def affine(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor,
    residual_NCS: Tensor | None = None, relu: bool = False,
) -> None:  # fmt: skip
    """See `passes.affine`."""
    form = _affine_form(mean_NC, scale_NC)
    if residual_NCS is None and not relu:
        form(x_NCS, mean_NC, scale_NC, shift_NC, out)
        return
    for n in _slices(x_NCS):
        form(x_NCS[n], mean_NC[n], scale_NC[n], shift_NC[n], out[n])
        passes.finish(out[n], None if residual_NCS is None else residual_NCS[n], relu)


def _slices(x_NCS: Tensor) -> list[slice]:
    """Samples that stay in the cache while several operations pass over them."""
    N, C, S = x_NCS.shape
    step = max(_CACHED // (C * S), 1)
    return [slice(n, n + step) for n in range(0, N, step)]


def _affine_form(mean_NC: Tensor, scale_NC: Tensor) -> Callable[..., None]:
    return passes.affine if _needs_centring(mean_NC, scale_NC) else _affine_uncentred


def _needs_centring(mean_NC: Tensor, scale_NC: Tensor) -> bool:
    return float(torch.linalg.vector_norm(mean_NC * scale_NC, float("inf"))) > _MAX_UNCENTRED


def _affine_uncentred(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor
) -> None:
    if not x_NCS.is_contiguous():
        intercept_NC = torch.addcmul(shift_NC, scale_NC, mean_NC, value=-1)
        torch.addcmul(intercept_NC[..., None], x_NCS, scale_NC[..., None], out=out)
        return
    mean, none = mean_NC.flatten(), x_NCS.new_empty(0)
    # BatchNorm in evaluation, with these coefficients for weight and bias and a variance of one.
    _aten.native_batch_norm.out(
        _rows(x_NCS), scale_NC.flatten(), shift_NC.flatten(), mean, torch.ones_like(mean), False, 0.0, 0.0,
        out=_rows(out), save_mean=none, save_invstd=none.clone(),
    )  # fmt: skip


def reduce(dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.reduce`."""
    if x_NCS.is_contiguous():
        dscale, dshift = _batch_norm_reduce(_rows(dy_NCS), _rows(x_NCS), mean_NC.flatten())
        return dscale.view_as(mean_NC), dshift.view_as(mean_NC)
    samples = zip(_images(dy_NCS), _images(x_NCS), mean_NC, strict=True)
    dscales, dshifts = zip(*(_batch_norm_reduce(*sample) for sample in samples), strict=True)
    return torch.stack(dscales), torch.stack(dshifts)


def reduce_relu(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor,
    y_NCS: Tensor | None, out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `passes.reduce_relu`."""
    form = _affine_form(mean_NC, scale_NC)
    parts = []
    for n in _slices(x_NCS):
        if y_NCS is None:
            form(x_NCS[n], mean_NC[n], scale_NC[n], shift_NC[n], out[n])
        passes.cut(dy_NCS[n], out[n] if y_NCS is None else y_NCS[n], out[n])
        parts.append(reduce(out[n], x_NCS[n], mean_NC[n]))
    d_scales, d_shifts = zip(*parts, strict=True)
    return torch.cat(d_scales), torch.cat(d_shifts)


def _batch_norm_reduce(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """BatchNorm's weight and bias gradients at unit variance, its input gradient left out."""
    one = torch.ones_like(mean)
    _, dscale, dshift = _aten.native_batch_norm_backward(
        dy, x, one, None, None, mean, one, True, 0.0, [False, True, True]
    )
    return dscale, dshift


def input_grad(
    dy_NCS: Tensor,
    x_NCS: Tensor,
    mean_NC: Tensor,
    scale_NC: Tensor,
    slope_NC: Tensor,
    offset_NC: Tensor,
    out: Tensor,
) -> None:
    """See `passes.input_grad`."""
    _affine_form(mean_NC, scale_NC)(x_NCS, mean_NC, slope_NC, offset_NC, out)
    out.addcmul_(dy_NCS, scale_NC[..., None])
