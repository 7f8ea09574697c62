"""One normalizer-shaped operation on X: instance moments in, a scale and a shift per sample and channel out.

    Y = A ⊙ (X − m) + B,    (A, B) = coefficients(m, v)

m and v are the mean and the biased variance of each channel of each sample over its positions. Every
layer of the family is a choice of `coefficients`; the two passes over X and their backward are here.

The eager form is two autograd Functions with the map between them in ordinary autograd. `_Moments` also
returns three *slots*, outputs that hold nothing and only exist so that a gradient can arrive: `_Affine`
hands dY, A and Σ dY back through them, and `_Moments` then writes dX in a single pass.

Legend: N samples, C channels, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exemplar_norm import passes, passes_cpu
from exemplar_norm.backends import refuse_double_backward, use_compiled, use_reference, use_triton


class Moments(NamedTuple):
    """Instance moments: mean and biased variance, each (N, C), over `positions` values."""

    mean: Tensor
    var: Tensor
    positions: int


Coefficients = Callable[[Moments], tuple[Tensor, Tensor]]


def moment_norm(
    x: Tensor, coefficients: Coefficients, *, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Normalize `x` (N, C, *spatial) by the scale and shift that `coefficients` makes of its moments.

    Statistics and coefficients are float32 (float64 for a float64 input), whatever the input and the
    autocast state; the output has the input's dtype and memory format. Their gradients are too, if
    `backward` is called outside autocast, as PyTorch asks for: inside, autocast takes the backward's matrix
    products (those of the gate, say) in low precision, as it does for any layer.

    Args:
        x: (N, C, *spatial), floating point, any strides.
        coefficients: differentiable map from `Moments` to (A, B), each (N, C).
        residual: added to the output, if there is one; of the shape and dtype of x.
        relu: apply a ReLU at the end, in the same pass.

    Raises:
        RuntimeError: second derivatives were asked of a form that has none; `backend("reference")` has them.
        ValueError: the chosen backend cannot run this input.
    """
    if use_reference(x):
        return _reference(x, coefficients, residual, relu)
    x = _dense(x)
    ops = choose_passes(x)
    count = math.prod(x.shape[2:])
    if not torch.is_grad_enabled():
        mean, var = _compute_moments(ops, x)
        scale, shift = _call(coefficients, Moments(mean, var, count), x)
        return _compute_affine(ops, x, mean, scale, shift, residual, relu)
    mean, var, *slots = _Moments.apply(x, ops)
    scale, shift = _call(coefficients, Moments(mean, var, count), x)
    y: Tensor = _Affine.apply(x.detach(), mean.detach(), scale, shift, *slots, residual, relu, ops)
    return y


def _reference(x: Tensor, coefficients: Coefficients, residual: Tensor | None, relu: bool) -> Tensor:
    # In the shape of X: under `torch.compile` a (N, C, S) that is seen as something else again is copied.
    values = x.to(_compute_dtype(x)) if x.dim() > 2 else x.to(_compute_dtype(x))[..., None]
    spatial = tuple(range(2, values.dim()))
    mean, var = passes.moments(values, spatial)
    if torch.compiler.is_compiling():
        # Their gradients are then made before X is passed over, not within the pass for each value of X.
        mean, var = torch.stack([mean, var]).unbind()
    scale, shift = _call(coefficients, Moments(mean, var, math.prod(x.shape[2:])), x)
    mean, scale, shift = (t.reshape(*t.shape, *(1 for _ in spatial)) for t in (mean, scale, shift))
    if torch.compiler.is_compiling():
        # From X as it came: a converted one would be kept for the backward. dX is then the sum of two, which
        # Inductor rounds once, and plain autograd would round each.
        values = x if x.dim() > 2 else x[..., None]
    y = ((values - mean) * scale + shift).reshape(x.shape)
    y = y if residual is None else y + residual
    return (torch.relu(y) if relu else y).to(x.dtype)


def _call(coefficients: Coefficients, moments: Moments, x: Tensor) -> tuple[Tensor, Tensor]:
    """The small map, kept in its own precision: autocast must not enter it."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return coefficients(moments)
    with torch.autocast(x.device.type, enabled=False):
        return coefficients(moments)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _dense(x: Tensor) -> Tensor:
    """`x` itself where its memory is channels-first or channels-last without gaps, else the nearest copy."""
    channels_last = x.movedim(1, -1)
    if x.is_contiguous() or channels_last.is_contiguous():
        return x
    return channels_last.contiguous().movedim(-1, 1) if x.stride(1) == 1 else x.contiguous()


def as_NCS(t: Tensor, like: Tensor, ops: Any) -> Tensor:
    """`t` as (N, C, S) in the layout of the dense tensor `like`, in a dtype that the passes take."""
    N, C, S = t.shape[0], t.shape[1], math.prod(t.shape[2:])
    t = t if ops.KEEPS_DTYPE else t.to(_compute_dtype(t))
    if like.is_contiguous():
        return t.contiguous().view(N, C, S)
    if t.stride() != like.stride():
        t = t.movedim(1, -1).contiguous().movedim(-1, 1)
    return t.as_strided((N, C, S), (S * C, 1, C))


def _like(x: Tensor, ops: Any) -> Tensor:
    # A result owns its memory: a view returned from a Function could not be changed in place.
    return torch.empty_like(x, dtype=x.dtype if ops.KEEPS_DTYPE else _compute_dtype(x))


def choose_passes(x: Tensor) -> Any:
    """The module with the passes for this input, under the backend that is active."""
    if use_triton(x):
        from exemplar_norm.kernels import triton_passes

        if triton_passes.fits(x):
            return triton_passes
    if use_compiled():
        from exemplar_norm.kernels import compiled_passes

        return compiled_passes
    return passes_cpu if x.device.type == "cpu" else passes


def _compute_moments(ops: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    pair: tuple[Tensor, Tensor] = ops.moments(as_NCS(x, x, ops))
    return pair


def _compute_affine(
    ops: Any, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool
) -> Tensor:
    y = _like(x, ops)
    added = None if residual is None else as_NCS(residual, x, ops)
    ops.affine(as_NCS(x, x, ops), mean, scale, shift, as_NCS(y, x, ops), added, relu)
    return y.to(x.dtype)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ops: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        mean, var = _compute_moments(ops, x)
        ctx.ops = ops
        ctx.save_for_backward(x, mean)
        ctx.set_materialize_grads(False)
        dy_slot, scale_slot, sum_slot = (like.new_empty(()).expand(like.shape) for like in (x, mean, mean))
        return mean, var, dy_slot, scale_slot, sum_slot

    @staticmethod
    def backward(
        ctx: Any, g_mean: Tensor | None, g_var: Tensor | None, dy: Tensor | None, scale: Tensor | None,
        dy_sum: Tensor | None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        refuse_double_backward()
        ops = ctx.ops
        x, mean = ctx.saved_tensors
        g_mean, g_var = (torch.zeros_like(mean) if g is None else g for g in (g_mean, g_var))
        dx = _like(x, ops)
        x_NCS, out = as_NCS(x, x, ops), as_NCS(dx, x, ops)
        if dy is None:  # the ratio was used, the output was not
            count = x_NCS.shape[2]
            ops.affine(x_NCS, mean, g_var * (2 / count), g_mean / count, out)
        else:
            ops.input_grad(as_NCS(dy, x, ops), x_NCS, mean, scale, dy_sum, g_mean, g_var, out)
        return dx.to(x.dtype), None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, dy_slot: Tensor, scale_slot: Tensor,
        sum_slot: Tensor, residual: Tensor | None, relu: bool, ops: Any,
    ) -> Tensor:  # fmt: skip
        y = _compute_affine(ops, x, mean, scale, shift, residual, relu)
        ctx.relu, ctx.ops = relu, ops
        # Where the output was positive follows from X alone, unless something was added.
        output = y if relu and residual is not None else None
        ctx.save_for_backward(x, mean, scale, shift if relu else None, output)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        ops = ctx.ops
        x, mean, scale, shift, y = ctx.saved_tensors
        x_NCS, dy_NCS = as_NCS(x, x, ops), as_NCS(dy, x, ops)
        if ctx.relu:
            dy = _like(x, ops)
            y_NCS = None if y is None else as_NCS(y, x, ops)
            d_scale, d_shift = ops.reduce_relu(dy_NCS, x_NCS, mean, scale, shift, y_NCS, as_NCS(dy, x, ops))
        else:
            d_scale, d_shift = ops.reduce(dy_NCS, x_NCS, mean)
        dy = dy.to(x.dtype)  # what the slot takes is of its own dtype
        d_residual = dy if ctx.needs_input_grad[7] else None
        return None, None, d_scale, d_shift, dy, scale, d_shift, d_residual, None, None
