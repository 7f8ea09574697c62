"""The Triton kernels as machine code for three generations of GPUs: no float64, no spilled registers."""

import pytest

pytest.importorskip("triton")

from exemplar_norm.kernels.triton_passes import FIRST_TILES, LAST_TILES
from tests.kernels.ahead_of_time import (
    CAPABILITIES,
    COMBINING,
    PASSES,
    build,
    map_kernels,
)

LAYOUTS = {"nchw": ("stride_s", FIRST_TILES), "nhwc": ("stride_c", LAST_TILES)}
# What a training step runs, on one tile a layout; every kernel, tile and capability in the slow test.
FAST = {"moments", "affine", "reduce", "input-grad"}


def check(ptx: str, used: dict[str, int]) -> None:
    assert ".f64" not in ptx
    # Spilled registers live in the stack frame.
    assert used["STACK"] == used["LOCAL"] == 0, used


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(FAST))
def test_pass_reads_and_writes_sixteen_bytes_at_once(name, layout):
    kernel, constants = PASSES[name]
    unit, tiles = LAYOUTS[layout]
    rows, positions, warps = tiles[2]
    ptx, used = build(kernel, constants | {unit: 1, "ROWS": rows, "POS": positions}, 90, "bf16", warps)
    check(ptx, used)
    assert "ld.global.v4" in ptx.replace(".L1::evict_last", "").replace(".b32", "")
    if name in ("affine", "input-grad"):
        assert "cvt.rn.bf16" in ptx  # rounds, where the interpreter cuts


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PASSES)
def test_pass(name, layout, capability):
    kernel, constants = PASSES[name]
    unit, tiles = LAYOUTS[layout]
    for rows, positions, warps in tiles:
        for dtype in ("fp32", "bf16"):
            sizes = {unit: 1, "ROWS": rows, "POS": positions}
            check(*build(kernel, constants | sizes, capability, dtype, warps))


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_pass_on_a_single_position_and_odd_sizes(name):
    kernel, constants = PASSES[name]
    single = {"stride_s": 1, "stride_c": 1, "S": 1, "ROWS": 512, "POS": 1}
    single |= {"chunk": 1} if "chunk" in kernel.arg_names else {}
    check(*build(kernel, constants | single, 80, odd=("C", "rows")))
    odd = {"stride_s": 1, "ROWS": 16, "POS": 64}
    check(*build(kernel, constants | odd, 80, odd=("C", "S", "stride_c", "rows", "chunk")))


@pytest.mark.parametrize("name", COMBINING)
def test_combining(name):
    check(*build(COMBINING[name], {"BLOCK": 256}, 90))


def test_map_of_the_default_mixture():
    for kernel, constants, warps in map_kernels("in-ln-bn", reduction=32, run=32).values():
        check(*build(kernel, constants, 90, warps=warps))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("reduction, run", [(32, 32), (1, 1), (8, 4), (256, 256)])
@pytest.mark.parametrize("mixture", ["in-ln-bn", "all-mean_std"])
def test_map(mixture, reduction, run, capability):
    for kernel, constants, warps in map_kernels(mixture, reduction, run).values():
        check(*build(kernel, constants, capability, warps=warps))
