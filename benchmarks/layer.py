"""Forward and backward of one layer against BatchNorm: time, peak memory, bytes saved, operations launched.

    python -m benchmarks.layer [--rounds 31] [--batch 32] [--shapes 64x56 256x28 …] [--candidates BN …]
                               [--device cuda] [--dtype bfloat16] [--allocator default]

On a CPU with one thread. Candidates are interleaved in one process, in both memory formats; the shapes are
those of ResNet-50 at 224². Prints ratios to BatchNorm and writes results/layer.json, for other than float32
on a CPU layer-<device>-<dtype>.json.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.candidates import CANDIDATES, ON_GPU, Build, training_pass
from benchmarks.launches import launches, recorded_kernels
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

# Channels × height (= width) of the normalization layers of ResNet-50.
SHAPES = ("64x112", "64x56", "256x56", "128x28", "512x28", "256x14", "1024x14", "512x7", "2048x7")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SELDOM = frozenset({"EN textbook", "SN plain"})
BASELINE = next(iter(CANDIDATES))


def measure_shape(
    candidates: dict[str, Build], channels: int, size: int, batch: int, layout: str, rounds: int,
    device: str = "cpu", dtype: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows, one a candidate, for inputs (batch, channels, size, size) in a memory format."""
    torch.compiler.reset()  # what was built for the shape before
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, size, size)
    given = (torch.randn(shape, generator=generator) for _ in range(2))
    x, dy = (t.to(device, dtype, memory_format=FORMATS[layout]) for t in given)
    x.requires_grad_()
    layers = {name: build(channels).to(device) for name, build in candidates.items()}
    runs = {name: training_pass(layer, x, dy) for name, layer in layers.items()}
    with recorded_kernels():
        seconds = interleaved(runs, rounds, SELDOM)
        launched = {name: launches(layer, x, dy) for name, layer in layers.items()}
    x_bytes = x.untyped_storage().nbytes()
    rows: list[dict[str, Any]] = []
    for name, layer in layers.items():
        saved = saved_bytes(partial(layer, x), list(layer.parameters()))
        rows.append(
            {
                "channels": channels, "size": size, "batch": batch, "layout": layout, "candidate": name,
                **summary(seconds[name]),
                "saved": saved / x_bytes, "peak": peak_bytes(runs[name]) / x_bytes, **launched[name],
            }
        )  # fmt: skip
    for row in rows:
        row["ratio"] = row["ms"] / rows[0]["ms"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: a line a shape, time NCHW / NHWC in multiples of BatchNorm's."""
    cells = {(r["channels"], r["size"], r["layout"], r["candidate"]): r for r in rows}
    shapes = dict.fromkeys((r["channels"], r["size"], r["batch"]) for r in rows)
    names = [name for name in dict.fromkeys(r["candidate"] for r in rows) if name != BASELINE]
    layouts = list(dict.fromkeys(r["layout"] for r in rows))
    lines = []
    for channels, size, batch in shapes:
        baseline = " / ".join(f"{cells[channels, size, lay, BASELINE]['ms']:.1f}" for lay in layouts)
        ratios = [
            " / ".join(f"{cells[channels, size, lay, name]['ratio']:.2f}" for lay in layouts)
            for name in names
        ]
        lines.append([f"{batch}×{channels}×{size}²", baseline, *ratios])
    layout = " / ".join(layouts)
    header = ["input", f"{BASELINE}, ms ({layout})", *(f"{name}, × {BASELINE}" for name in names)]
    return f"{markdown(header, lines)}\n\n{largest(rows, [BASELINE, *names])}"


def largest(rows: list[dict[str, Any]], names: list[str]) -> str:
    """The most that each candidate takes of memory, and launches, over the shapes and layouts."""
    kinds = {
        "saved": ("saved bytes / X", ".2f"),
        "peak": ("peak bytes / X", ".2f"),
        "launches_forward": ("operations forward", ""),
        "launches_backward": ("operations backward", ""),
    }
    of = {name: [r for r in rows if r["candidate"] == name] for name in names}
    lines = [
        [name, *(f"{max(r[key] for r in of[name]):{form}}" for key, (_, form) in kinds.items())]
        for name in names
    ]
    return markdown(["largest over the shapes", *(title for title, _ in kinds.values())], lines)


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__, rounds=31, batch=32)
    options.add_argument("--shapes", nargs="+", default=SHAPES, metavar="CxS")
    options.add_argument("--candidates", nargs="+", choices=[*CANDIDATES, *ON_GPU], metavar="NAME")
    args = options.parse_args()
    torch.set_num_threads(1)
    use_allocator(args.allocator)
    known = CANDIDATES | (ON_GPU if args.device != "cpu" else {})
    candidates = {name: known[name] for name in dict.fromkeys([BASELINE, *(args.candidates or known)])}
    rows = []
    for shape in args.shapes:
        channels, size = (int(number) for number in shape.split("x"))
        for layout in FORMATS:
            rows += measure_shape(
                candidates, channels, size, args.batch, layout, args.rounds, args.device,
                getattr(torch, args.dtype),
            )  # fmt: skip
            line = ", ".join(f"{r['candidate']} {r['ratio']:.2f}" for r in rows[-len(candidates) :])
            print(f"{shape} {layout}: {line}", flush=True)
    print(f"\n{table(rows)}\n\nwritten: {write_result('layer', rows, args.device, args.dtype)}")


if __name__ == "__main__":
    main()
