"""The passes over X as Triton kernels: same functions as `exemplar_norm.passes`, any input dtype.

Block sizes are tuned once per shape, layout and dtype, on the first call.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from exemplar_norm.kernels import tiles

KEEPS_DTYPE = True

_COMBINED = 256  # statistics a program of the combining kernels takes

# Enough programs for every multiprocessor of a large GPU, a few times over.
_PROGRAMS_PER_PROCESSOR = 4
_SHORTEST_PART = 256

# (ROWS, POS, warps): channels by positions.
FIRST_TILES = (
    (1, 1024, 4), (1, 2048, 8), (2, 512, 4), (4, 256, 4), (8, 128, 4), (16, 64, 4), (64, 16, 4), (512, 1, 4),
)  # fmt: skip
LAST_TILES = ((64, 16, 4), (64, 32, 8), (128, 16, 8), (128, 8, 4), (32, 32, 8), (32, 1, 1))


def _tuned(kernel: Any) -> Any:
    configs = [
        triton.Config({"ROWS": rows, "POS": positions}, num_warps=warps)
        for rows, positions, warps in dict.fromkeys(FIRST_TILES + LAST_TILES)
    ]
    if triton.knobs.runtime.interpret:  # there is nothing to time: small tiles, so that loops are run
        configs = [triton.Config({"ROWS": 4, "POS": 16})]
    prune = {"early_config_prune": _fitting}
    return triton.autotune(configs, key=["C", "S", "stride_c"], prune_configs_by=prune)(kernel)


def _fitting(configs: list[Any], arguments: dict[str, Any], **_: Any) -> list[Any]:
    """The tiles of the layout that are at most the map rounded up, or the smallest."""
    tiles_of_layout = FIRST_TILES if arguments["stride_s"] == 1 else LAST_TILES
    positions = triton.next_power_of_2(arguments["S"])
    channels = triton.next_power_of_2(arguments["C"])
    own = [
        c for c in configs
        if (c.kwargs["ROWS"], c.kwargs["POS"], c.num_warps) in tiles_of_layout
    ]  # fmt: skip
    fitting = [
        c for c in own
        if c.kwargs["POS"] <= positions
        and c.kwargs["ROWS"] <= max(channels, 32)
        and (c.kwargs["POS"] > 1 or positions <= 8)
    ]  # fmt: skip
    return fitting or own[-1:] or configs


_moments = _tuned(tiles.moments_kernel)
_affine = _tuned(tiles.affine_kernel)
_reduce = _tuned(tiles.reduce_kernel)
_input_grad = _tuned(tiles.input_grad_kernel)


def fits(x: Tensor) -> bool:
    """Whether offsets within a sample fit the kernels' 32 bits, whatever the tile."""
    return x.shape[0] * x.shape[1] < 2**31 and x[0].numel() * 2 < 2**31 and x.shape[2:].numel() < 2**24


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _geometry(x_NCS: Tensor) -> tuple[int, int, int, int, int, int]:
    """(samples, C, S, strides), with channels-first samples taken as channels of one."""
    N, C, S = x_NCS.shape
    if x_NCS.is_contiguous():
        return 1, N * C, S, 0, S, 1
    return N, C, S, S * C, 1, C


def _parts(x_NCS: Tensor) -> tuple[int, int]:
    """How many programs share the positions of a channel, and how many positions each takes."""
    samples, C, S, _, stride_c, _ = _geometry(x_NCS)
    programs = samples * (triton.cdiv(C, 64) if stride_c == 1 else triton.cdiv(C, 4))
    wanted = triton.cdiv(_PROGRAMS_PER_PROCESSOR * _processors(x_NCS.device), programs)
    parts = max(min(wanted, S // _SHORTEST_PART), 1)
    chunk = S if parts == 1 else 16 * triton.cdiv(S, 16 * parts)  # so that loads stay wide
    return triton.cdiv(S, chunk), chunk


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.moments`."""
    samples, C, S, *strides = _geometry(x_NCS)
    rows = samples * C
    parts, chunk = _parts(x_NCS)
    mean, var = x_NCS.new_empty(2, *x_NCS.shape[:2], dtype=torch.float32)
    means, squares = (mean, var) if parts == 1 else mean.new_empty(2, parts, rows)
    _moments[lambda meta: (samples * triton.cdiv(C, meta["ROWS"]), parts)](
        x_NCS, means, squares, C, S, *strides, chunk, rows, FINAL=parts == 1
    )
    if parts > 1:
        tiles.combine_moments_kernel[(triton.cdiv(rows, _COMBINED),)](
            means, squares, mean, var, rows, S, chunk, parts, BLOCK=_COMBINED
        )
    return mean, var


def affine(
    x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor,
    residual: Tensor | None = None, relu: bool = False,
) -> None:  # fmt: skip
    """See `passes.affine`."""
    samples, C, S, *strides = _geometry(x_NCS)
    _affine[_tile_grid(samples, C, S)](
        x_NCS, out if residual is None else residual, out, mean_NC, scale_NC.contiguous(),
        shift_NC.contiguous(), C, S, *strides, RESIDUAL=residual is not None, RELU=relu,
    )  # fmt: skip


def _tile_grid(samples: int, C: int, S: int) -> Any:
    return lambda meta: (samples * triton.cdiv(C, meta["ROWS"]) * triton.cdiv(S, meta["POS"]),)


def reduce(dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """See `passes.reduce`."""
    return _run_reduce(dy_NCS, x_NCS, mean_NC, mean_NC, mean_NC, None, None)


def reduce_relu(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, y_NCS: Tensor | None,
    out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `passes.reduce_relu`."""
    return _run_reduce(dy_NCS, x_NCS, mean_NC, scale_NC.contiguous(), shift_NC.contiguous(), y_NCS, out)


def _run_reduce(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor, y_NCS: Tensor | None,
    dz_NCS: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    samples, C, S, *strides = _geometry(x_NCS)
    rows = samples * C
    parts, chunk = _parts(x_NCS)
    d_scale, d_shift = mean_NC.new_empty(2, *mean_NC.shape)
    d_scales, d_shifts = (d_scale, d_shift) if parts == 1 else mean_NC.new_empty(2, parts, rows)
    _reduce[lambda meta: (samples * triton.cdiv(C, meta["ROWS"]), parts)](
        dy_NCS, x_NCS, x_NCS if y_NCS is None else y_NCS, dy_NCS if dz_NCS is None else dz_NCS, mean_NC,
        scale_NC, shift_NC, d_scales, d_shifts, C, S, *strides, chunk, rows,
        RELU=dz_NCS is not None, FROM_OUTPUT=y_NCS is not None,
    )  # fmt: skip
    if parts > 1:
        tiles.combine_sums_kernel[(triton.cdiv(rows, _COMBINED),)](
            d_scales, d_shifts, d_scale, d_shift, rows, parts, BLOCK=_COMBINED
        )
    return d_scale, d_shift


def input_grad(
    dy_NCS: Tensor, x_NCS: Tensor, mean_NC: Tensor, scale_NC: Tensor, dy_sum_NC: Tensor, g_mean_NC: Tensor,
    g_var_NC: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """See `passes.input_grad`."""
    samples, C, S, *strides = _geometry(x_NCS)
    statistics = (t.contiguous() for t in (mean_NC, scale_NC, dy_sum_NC, g_mean_NC, g_var_NC))
    _input_grad[_tile_grid(samples, C, S)](
        dy_NCS, x_NCS, out, *statistics, C, S, *strides
    )  # fmt: skip
