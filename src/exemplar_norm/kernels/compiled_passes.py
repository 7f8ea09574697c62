"""The passes over X built by Inductor: same functions as `exemplar_norm.passes`, any dtype.

On a CPU all but dX and what is fused stay with native kernels where X is channels-last in full precision, and
sums also in low precision where samples are large. What is built serves a shape family for the length of the
process: a pass, a memory layout, a dtype, a device, and which sizes are 1. Other sizes are symbols, so that
all layers of a network share it.

Legend: as in `passes`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from exemplar_norm import passes, passes_cpu

KEEPS_DTYPE = True

_LARGE = 2**16
"""Values of a channels-last sample of low precision above which native sums are faster than built ones."""

_built: dict[Hashable, Callable[..., Any]] = {}


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = _wide(x)
    rough = x.mean(2)
    centred = x - rough[..., None]
    # A long float32 sum is some digits off; what is left over is small, and gives them back.
    rest = centred.mean(2)
    return rough + rest, centred.square().mean(2) - rest.square()


def _affine(
    x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, out: Tensor, residual: Tensor | None, relu: bool
) -> None:
    y = (_wide(x) - mean[..., None]) * scale[..., None] + shift[..., None]
    if residual is not None:
        y = y + _wide(residual)
    out.copy_(torch.relu(y) if relu else y)


def _reduce(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    dy = _wide(dy)
    return (dy * (_wide(x) - mean[..., None])).sum(2), dy.sum(2)


def _reduce_relu(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, y: Tensor | None, out: Tensor
) -> tuple[Tensor, Tensor]:
    centred = _wide(x) - mean[..., None]
    z = centred * scale[..., None] + shift[..., None] if y is None else y
    dz = torch.where(z <= 0, 0.0, _wide(dy))
    out.copy_(dz)
    return (dz * centred).sum(2), dz.sum(2)


def _input_grad(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, out: Tensor
) -> None:
    centred = _wide(x) - mean[..., None]
    out.copy_(scale[..., None] * _wide(dy) + (slope[..., None] * centred + offset[..., None]))


def _run(function: Callable[..., Any], x: Tensor, *inputs: Any) -> Any:
    """Call `function`, built for the family of `x`, the first of its tensors of that size."""
    # Whether one of them asks for a gradient is no matter of the pass, and no reason to build it again.
    x, *arguments = (a.detach() if isinstance(a, Tensor) else a for a in (x, *inputs))
    options = tuple(a if isinstance(a, bool) else a is None for a in arguments if not isinstance(a, Tensor))
    key = (function, x.is_contiguous(), x.dtype, x.device, tuple(size == 1 for size in x.shape), options)
    build = _built.get(key)
    if build is not None:
        return build(x, *arguments)
    # A code object of its own: the compiler limits what it builds from one.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    _built[key] = torch.compile(own, dynamic=True, fullgraph=True)
    # Sizes that happen to be equal in this call are not the same symbol. The patch takes 80 µs: not in each
    # call, though one of them builds again after `torch.compiler.reset()`.
    with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        return _built[key](x, *arguments)


def _native(x_NCS: Tensor, sums: bool = False) -> bool:
    """Whether the native kernels are the faster ones: of low precision for sums of large samples alone.

    Inductor takes a channels-last sum a few channels at a time, down through all positions, and memory does
    not follow; native kernels go along the rows.
    """
    if x_NCS.device.type != "cpu" or x_NCS.is_contiguous():
        return False
    return not passes_cpu.is_narrow(x_NCS) or (sums and x_NCS.shape[1] * x_NCS.shape[2] > _LARGE)


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.moments`."""
    if _native(x_NCS, sums=True):
        return passes_cpu.moments(x_NCS)
    mean, var = _run(_moments, x_NCS)
    return mean, var


def affine(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor,
    residual_NCS: Tensor | None = None, relu: bool = False,
) -> None:  # fmt: skip
    """See `passes.affine`."""
    if _native(x_NCS) and residual_NCS is None and not relu:
        passes_cpu.affine(x_NCS, mean_NC, scale_NC, shift_NC, out)
        return
    _run(_affine, x_NCS, *_dense(mean_NC, scale_NC, shift_NC), out, residual_NCS, relu)


def _dense(*statistics: Tensor) -> list[Tensor]:
    """Contiguous: other strides would be another family."""
    return [t.contiguous() for t in statistics]


def reduce(dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.reduce`."""
    if _native(x_NCS, sums=True):
        return passes_cpu.reduce(dy_NCS, x_NCS, mean_NC)
    d_scale, d_shift = _run(_reduce, dy_NCS, x_NCS, mean_NC)
    return d_scale, d_shift


def reduce_relu(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor,
    y_NCS: Tensor | None, out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `passes.reduce_relu`."""
    statistics = _dense(mean_NC, scale_NC, shift_NC)
    d_scale, d_shift = _run(_reduce_relu, dy_NCS, x_NCS, *statistics, y_NCS, out)
    return d_scale, d_shift


def input_grad(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, dy_sum_NC: Tensor, g_mean_NC: Tensor,
    g_var_NC: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """See `passes.input_grad`."""
    coefficients = passes.slope_and_offset(x_NCS, scale_NC, dy_sum_NC, g_mean_NC, g_var_NC)
    _run(_input_grad, dy_NCS, x_NCS, *_dense(mean_NC, scale_NC, *coefficients), out)
