"""How the cost of a layer grows with the size of its work: time, saved and peak bytes, forward and backward.

    python -m benchmarks.growth [--rounds 11] [--batch 32] [--factors batch resolution …]
                                [--device cuda] [--dtype bfloat16] [--allocator default]

On a CPU with one thread, NCHW. One factor grows and the others stay at 32×128×28², normalizers at three;
depth is that of a stack of convolution 3×3, normalizer and ReLU on 32×64×14². Candidates of one size are
interleaved in one process. Prints tables, and for each factor the exponent of a power law through the upper
half of its values: 1 is linear, for the resolution in the number of pixels. Writes results/growth.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.candidates import CANDIDATES, Build, exemplar, training_pass
from benchmarks.measure import (
    interleaved,
    markdown,
    parser,
    peak_bytes,
    saved_bytes,
    summary,
    use_allocator,
    write_result,
)

FACTORS: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
    "resolution": (7, 14, 28, 56, 112),
    "channels": (16, 32, 64, 128, 256, 512, 1024),
    "normalizers": (1, 2, 3, 4),
    "depth": (1, 2, 4, 8, 16, 32),
}
"""Each factor's values."""
LAYER = {"channels": 128, "resolution": 28}
STACK = {"channels": 64, "resolution": 14}
"""What stays while another factor grows, of one layer and of a stack."""
LAYERS = ("BN", "GN", "SN plain", "EN eager", "EN compiled")
STACKED = ("BN", "EN eager")
MIXTURES = (("bn",), ("in", "bn"), ("in", "ln", "bn"), ("in", "ln", "bn", "gn"))
"""EN's normalizers by their number."""
MEASURES = {"ms": "time", "saved": "saved bytes", "peak": "peak bytes"}


def stack(build: Build, depth: int, channels: int) -> nn.Module:
    """`depth` blocks of a convolution, a normalizer and a ReLU."""
    blocks = [
        (nn.Conv2d(channels, channels, 3, padding=1, bias=False), build(channels), nn.ReLU(inplace=True))
        for _ in range(depth)
    ]
    return nn.Sequential(*(module for block in blocks for module in block))


def candidates_of(factor: str, value: int) -> dict[str, Build]:
    """What is measured at a value of a factor: name → module for so many channels."""
    if factor == "normalizers":
        mixture = MIXTURES[value - 1]
        return {"EN eager": exemplar("eager", mixture), "EN compiled": exemplar("compiled", mixture)}
    if factor == "depth":
        return {name: partial(stack, CANDIDATES[name], value) for name in STACKED}
    return {name: CANDIDATES[name] for name in LAYERS}


def measure_value(
    factor: str, value: int, batch: int, rounds: int, device: str, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Rows, one a candidate, at a value of a factor."""
    sizes = {"batch": batch, **(STACK if factor == "depth" else LAYER)}
    if factor in sizes:
        sizes[factor] = value
    shape = (sizes["batch"], sizes["channels"], sizes["resolution"], sizes["resolution"])
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    x.requires_grad_()
    layers = {
        name: build(sizes["channels"]).to(device, dtype if factor == "depth" else None)
        for name, build in candidates_of(factor, value).items()
    }
    runs = {name: training_pass(layer, x, dy) for name, layer in layers.items()}
    seconds = interleaved(runs, rounds)
    return [
        {
            "factor": factor, "value": value, **sizes, "candidate": name, **summary(seconds[name]),
            "saved": saved_bytes(partial(layer, x), list(layer.parameters())),
            "peak": peak_bytes(runs[name]),
        }
        for name, layer in layers.items()
    ]  # fmt: skip


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost over log value, by least squares through the upper half of the values."""
    pairs = sorted(zip(values, costs, strict=True))
    upper = pairs[-max(2, math.ceil(len(pairs) / 2)) :]
    if len(upper) < 2:
        return math.nan
    x, y = ([math.log(pair[i]) for pair in upper] for i in (0, 1))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum(
        (a - x_mean) ** 2 for a in x
    )


def tables(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: times, memory, and exponents."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    cells = {(row["factor"], row["value"], row["candidate"]): row for row in rows}
    points = list(dict.fromkeys((row["factor"], row["value"]) for row in rows))
    times = [
        [factor, str(value), *(_cell(cells.get((factor, value, name)), "{ms:.2f}") for name in names)]
        for factor, value in points
    ]
    memory = [
        [
            factor,
            str(value),
            *(_cell(cells.get((factor, value, name)), "{saved:.2f} / {peak:.2f}", 2**20) for name in names),
        ]
        for factor, value in points
    ]
    return "\n\n".join(
        [
            markdown(["factor", "value", *(f"{name}, ms" for name in names)], times),
            markdown(["factor", "value", *(f"{name}, saved / peak MiB" for name in names)], memory),
            markdown(["exponent by factor", "of", *names], exponents(rows, names)),
        ]
    )


def _cell(row: dict[str, Any] | None, form: str, unit: int = 1) -> str:
    return form.format(**{key: row[key] / unit for key in MEASURES}) if row else ""


def amount(factor: str, value: int) -> int:
    """What grows in proportion to the work: a factor's value, of a resolution the pixels."""
    return value**2 if factor == "resolution" else value


def exponents(rows: list[dict[str, Any]], names: list[str]) -> list[list[str]]:
    """A line for each factor and measure, with each candidate's exponent."""
    lines = []
    for factor in dict.fromkeys(row["factor"] for row in rows):
        for key, title in MEASURES.items():
            line = [factor, title]
            for name in names:
                of = [row for row in rows if (row["factor"], row["candidate"]) == (factor, name)]
                found = (
                    exponent([amount(factor, row["value"]) for row in of], [row[key] for row in of])
                    if of
                    else math.nan
                )
                line.append("" if math.isnan(found) else f"{found:.2f}")
            lines.append(line)
    return lines


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__, rounds=11, batch=32)
    options.add_argument("--factors", nargs="+", choices=list(FACTORS), default=list(FACTORS))
    args = options.parse_args()
    torch.set_num_threads(1)
    use_allocator(args.allocator)
    rows = []
    for factor in args.factors:
        for value in FACTORS[factor]:
            found = measure_value(
                factor, value, args.batch, args.rounds, args.device, getattr(torch, args.dtype)
            )
            rows += found
            told = ", ".join(f"{row['candidate']} {row['ms']:.2f}" for row in found)
            print(f"{factor} {value}, ms: {told}", flush=True)
    print(f"\n{tables(rows)}\n\nwritten: {write_result('growth', rows, args.device, args.dtype)}")


if __name__ == "__main__":
    main()
