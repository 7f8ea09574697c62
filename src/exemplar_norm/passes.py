"""The passes over X, in portable PyTorch: the definition that faster forms are checked against.

Legend: N samples, C channels, S positions. x_NCS is a view of X in either dense layout; statistics and
coefficients are (N, C), all in one dtype. `out` has the layout of X.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEEPS_DTYPE = False
"""Whether the passes take X in its own dtype; else they get it in that of the statistics."""


def moments(x: Tensor, spatial: tuple[int, ...] = (2,)) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over positions: m = Σ x / S, v = Σ (x − m)² / S, never E[x²] − E[x]²."""
    if x.numel() == 0:
        # var_mean warns, and is NaN over no positions, as the parameters' gradients would be.
        return x.sum(spatial), x.sum(spatial)
    var_NC, mean_NC = torch.var_mean(x, spatial, correction=0)
    return mean_NC, var_NC


def affine(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor,
    residual_NCS: Tensor | None = None, relu: bool = False,
) -> None:  # fmt: skip
    """Y = A ⊙ (X − m) + B, plus a residual and through a ReLU where asked for.

    Centred first, so that a large mean over a small variance costs no digits.
    """
    torch.sub(x_NCS, mean_NC[..., None], out=out).mul_(scale_NC[..., None]).add_(shift_NC[..., None])
    finish(out, residual_NCS, relu)


def finish(out: Tensor, residual_NCS: Tensor | None, relu: bool) -> None:
    """Add the residual and apply the ReLU, in place."""
    if residual_NCS is not None:
        out.add_(residual_NCS)
    if relu:
        out.relu_()


def reduce(dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ dY ⊙ (X − m), Σ dY) over positions: the gradients that arrive at A and B."""
    return (x_NCS - mean_NC[..., None]).mul_(dy_NCS).sum(2), dy_NCS.sum(2)


def reduce_relu(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor,
    y_NCS: Tensor | None, out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`reduce` of dZ, which is dY where the output was positive and 0 elsewhere; dZ is written to `out`.

    The output is `y_NCS` if that is given, else `affine` of X with a ReLU.
    """
    if y_NCS is None:
        affine(x_NCS, mean_NC, scale_NC, shift_NC, out)
        y_NCS = out
    cut(dy_NCS, y_NCS, out)
    return reduce(out, x_NCS, mean_NC)


def cut(dy_NCS: Tensor, y_NCS: Tensor, out: Tensor) -> None:
    """DZ = dY where Y > 0, else 0, as ReLU's own backward has it."""
    torch.ops.aten.threshold_backward.grad_input(dy_NCS, y_NCS, 0, grad_input=out)


def input_grad(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, dy_sum_NC: Tensor, g_mean_NC: Tensor,
    g_var_NC: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """DX = A ⊙ dY + 2 g_v / S · (X − m) + (g_m − A · Σ dY) / S, with the map's gradients g_m and g_v."""
    affine(x_NCS, mean_NC, *slope_and_offset(x_NCS, scale_NC, dy_sum_NC, g_mean_NC, g_var_NC), out)
    out.addcmul_(dy_NCS, scale_NC[..., None])


def slope_and_offset(
    x_NCS: Tensor, scale_NC: Tensor, dy_sum_NC: Tensor, g_mean_NC: Tensor, g_var_NC: Tensor
) -> tuple[Tensor, Tensor]:
    """2 g_v / S and (g_m − A · Σ dY) / S, each (N, C)."""
    S = x_NCS.shape[2]
    return g_var_NC * (2 / S), torch.addcmul(g_mean_NC, scale_NC, dy_sum_NC, value=-1).mul_(1 / S)
