"""One normalizer-shaped operation on X: instance moments in, a scale and a shift per sample and channel out.

    Y = A ⊙ (X − m) + B,    (A, B) = coefficients(m, v)

m and v are the mean and the biased variance of each channel of each sample over its positions. Every
layer of the family is a choice of `coefficients`; the two passes over X and their backward are here.

The eager form is two autograd Functions with the map between them in ordinary autograd. `_Moments` also
returns two *slots*, outputs that hold nothing and only exist so that a gradient can arrive: `_Affine`
hands dY and A back through them, and `_Moments` then writes dX in a single pass.

Legend: N samples, C channels, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exemplar_norm import passes, passes_cpu
from exemplar_norm.backends import use_reference


class Moments(NamedTuple):
    """Instance moments: mean and biased variance, each (N, C), over `positions` values."""

    mean: Tensor
    var: Tensor
    positions: int


Coefficients = Callable[[Moments], tuple[Tensor, Tensor]]


def moment_norm(x: Tensor, coefficients: Coefficients) -> Tensor:
    """Normalize `x` (N, C, *spatial) by the scale and shift that `coefficients` makes of its moments.

    Statistics and coefficients are float32 (float64 for a float64 input), whatever the input and the
    autocast state; the output has the input's dtype and memory format. Their gradients are too, if
    `backward` is called outside autocast, as PyTorch asks for: inside, autocast takes the backward's matrix
    products (those of the gate, say) in low precision, as it does for any layer.

    Args:
        x: (N, C, *spatial), floating point, any strides.
        coefficients: differentiable map from `Moments` to (A, B), each (N, C).

    Raises:
        RuntimeError: second derivatives were asked of the eager form; `backend("reference")` has them.
    """
    if use_reference(x):
        return _reference(x, coefficients)
    x = _dense(x)
    count = math.prod(x.shape[2:])
    if not torch.is_grad_enabled():
        mean, var = _compute_moments(x)
        scale, shift = _call(coefficients, Moments(mean, var, count), x)
        return _compute_affine(x, mean, scale, shift)
    mean, var, dy_slot, scale_slot = _Moments.apply(x)
    scale, shift = _call(coefficients, Moments(mean, var, count), x)
    y: Tensor = _Affine.apply(x.detach(), mean, scale, shift, dy_slot, scale_slot)
    return y


def _reference(x: Tensor, coefficients: Coefficients) -> Tensor:
    x_NCS = x.to(_compute_dtype(x)).reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    mean, var = passes.moments(x_NCS)
    scale, shift = _call(coefficients, Moments(mean, var, x_NCS.shape[2]), x)
    y_NCS = (x_NCS - mean[..., None]) * scale[..., None] + shift[..., None]
    return y_NCS.to(x.dtype).reshape(x.shape)


def _call(coefficients: Coefficients, moments: Moments, x: Tensor) -> tuple[Tensor, Tensor]:
    """The small map, kept in its own precision: autocast must not enter it."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return coefficients(moments)
    with torch.autocast(x.device.type, enabled=False):
        return coefficients(moments)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _dense(x: Tensor) -> Tensor:
    """`x` itself where its memory is channels-first or channels-last without gaps, else the nearest copy."""
    channels_last = x.movedim(1, -1)
    if x.is_contiguous() or channels_last.is_contiguous():
        return x
    return channels_last.contiguous().movedim(-1, 1) if x.stride(1) == 1 else x.contiguous()


def _positions(t: Tensor, like: Tensor) -> Tensor:
    """`t` as (N, C, S) in the layout of the dense tensor `like` and in the dtype of the statistics."""
    N, C, S = t.shape[0], t.shape[1], math.prod(t.shape[2:])
    t = t.to(_compute_dtype(t))
    if like.is_contiguous():
        return t.contiguous().view(N, C, S)
    return t.movedim(1, -1).contiguous().view(N, S, C).transpose(1, 2)


def _passes(x: Tensor) -> Any:
    return passes_cpu if x.device.type == "cpu" else passes


def _compute_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    pair: tuple[Tensor, Tensor] = _passes(x).moments(_positions(x, x))
    return pair


def _compute_affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # The result owns its memory: a view returned from a Function could not be changed in place.
    y = torch.empty_like(x, dtype=_compute_dtype(x))
    _passes(x).affine(_positions(x, x), mean, scale, shift, out=_positions(y, x))
    return y.to(x.dtype)


def _refuse_double_backward() -> None:
    # With once_differentiable alone, grad(y.sum(), x, create_graph=True) would be silently wrong.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "second derivatives are not available from the eager form of the exemplar_norm layers (backward "
            'ran with create_graph=True): run the forward pass under exemplar_norm.backend("reference")'
        )


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var = _compute_moments(x)
        ctx.save_for_backward(x, mean)
        ctx.set_materialize_grads(False)
        dy_slot = x.new_empty(()).expand(x.shape)
        scale_slot = mean.new_empty(()).expand(mean.shape)
        return mean, var, dy_slot, scale_slot

    @staticmethod
    def backward(
        ctx: Any, g_mean: Tensor | None, g_var: Tensor | None, dy: Tensor | None, scale: Tensor | None
    ) -> Tensor | None:
        _refuse_double_backward()
        x, mean = ctx.saved_tensors
        zero = torch.zeros_like(mean)
        count = math.prod(x.shape[2:])
        slope = zero if g_var is None else g_var * (2 / count)
        offset = zero if g_mean is None else g_mean / count
        dx = torch.empty_like(x, dtype=_compute_dtype(x))
        x_NCS, out = _positions(x, x), _positions(dx, x)
        if dy is None:  # the ratio was used, the output was not
            _passes(x).affine(x_NCS, mean, slope, offset, out=out)
        else:
            _passes(x).input_grad(_positions(dy, x), x_NCS, mean, scale, slope, offset, out=out)
        return dx.to(x.dtype)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, dy_slot: Tensor, scale_slot: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, mean, scale)
        return _compute_affine(x, mean, scale, shift)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_double_backward()
        x, mean, scale = ctx.saved_tensors
        d_scale, d_shift = _passes(x).reduce(_positions(dy, x), _positions(x, x), mean)
        d_mean = -scale * d_shift if ctx.needs_input_grad[1] else None
        return None, d_mean, d_scale, d_shift, dy, scale
