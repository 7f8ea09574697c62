"""Machine code of the Triton kernels for GPUs that are not there, and what it uses.

Signatures are those that a launch would specialise to: pointers and sizes that are multiples of 16 are marked
so, sizes of 1 are constants.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from exemplar_norm.kernels import map_backward_tiles, map_tiles, tiles
from exemplar_norm.kernels.triton_map import WARPS

CAPABILITIES = (80, 90, 100)
MAPS = ("x", "y", "dy", "dz", "dx", "residual")  # tensors of X's size and dtype
FLOATS = ("eps", "rate", "momentum", "unbiased")
INTEGERS = {
    "C", "S", "N", "H", "R", "stride_n", "stride_c", "stride_s", "chunk", "rows", "parts", "groups", "run",
}  # fmt: skip


def build(kernel, constants, capability, dtype="fp32", warps=4, odd=()):
    """(PTX, resource usage); ``constants`` are constexpr values, ``odd`` sizes that are no multiple of 16."""
    types, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in FLOATS:
            types[name] = "fp32"
        elif name in INTEGERS:
            types[name] = "i32"
        else:
            types[name] = f"*{dtype if name in MAPS else 'i64' if name == 'tracked' else 'fp32'}"
        if name not in (*constants, *FLOATS, *odd):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constants), attrs=attributes)
    # Said outright, as Triton 3.9 warns where it is not; it is the default of every version up to there.
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return compiled.asm["ptx"], resources(compiled.asm["cubin"])


def resources(cubin: bytes) -> dict[str, int]:
    """What cuobjdump says of registers, stack (where spilled registers go) and so on."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


PASSES = {
    "moments": (tiles.moments_kernel, {"FINAL": True}),
    "partial-moments": (tiles.moments_kernel, {"FINAL": False}),
    "affine": (tiles.affine_kernel, {"RESIDUAL": False, "RELU": False}),
    "affine-residual-relu": (tiles.affine_kernel, {"RESIDUAL": True, "RELU": True}),
    "reduce": (tiles.reduce_kernel, {"RELU": False, "FROM_OUTPUT": False}),
    "reduce-relu": (tiles.reduce_kernel, {"RELU": True, "FROM_OUTPUT": False}),
    "reduce-relu-output": (tiles.reduce_kernel, {"RELU": True, "FROM_OUTPUT": True}),
    "input-grad": (tiles.input_grad_kernel, {}),
}
COMBINING = {"moments": tiles.combine_moments_kernel, "sums": tiles.combine_sums_kernel}

NONE = dict.fromkeys(("IN", "LN", "GN", "BN"), -1)
MIXTURES = {
    "in-ln-bn": {**NONE, "IN": 0, "LN": 1, "BN": 2, "K": 3, "DEVIATION": False},
    "all-mean_std": {"IN": 0, "LN": 1, "BN": 2, "GN": 3, "K": 4, "DEVIATION": True},
}
POOL = dict.fromkeys(("BATCH", "MOVE_MEAN", "MOVE_VAR"), True) | {"CUMULATIVE": False, "BLOCK": 128}


def map_kernels(mixture, reduction, run, hidden=64):
    """Name → (kernel, constants, warps) of a mixture's map, by the gate's reduction and a run's channels."""
    constants = MIXTURES[mixture] | {"KP": 4, "HP": hidden}
    sample = {"RP": reduction, "X": max(128 // reduction, 1)}
    columns = {"Y": run, "X": max(32 // run, 1), "OWN_BATCH": True}
    pool = {**POOL, "LN": True, "GN": constants["GN"] >= 0}
    return {
        "pool": (map_tiles.pool_kernel, pool, 4),
        "mix": (map_tiles.mix_kernel, constants | sample, 4),
        "mix-backward": (map_backward_tiles.mix_backward_kernel, constants | sample | {"RATIO": True}, WARPS),
        "collect": (map_backward_tiles.collect_kernel, constants | columns, WARPS),
    }
