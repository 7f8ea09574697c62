"""Each pass over X by itself, as a share of the memory bandwidth that a copy reaches in the same run.

    python -m benchmarks.passes [--rounds 31] [--batch 32] [--shapes 64x56 256x28 …] [--forms eager …]
                                [--device cuda] [--dtype bfloat16] [--allocator default]

A pass that moves b bytes in t seconds reaches b / t. A copy of X reads and writes one of its size; moments
read X, the output pass reads X and writes Y, the sums read dY and X, and dX reads both and writes one. On a
CPU with one thread, in both memory formats, all interleaved in one process. Prints the shares and writes
results/passes.json, for other than float32 on a CPU passes-<device>-<dtype>.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.layer import FORMATS, SHAPES
from benchmarks.measure import interleaved, markdown, parser, summary, use_allocator, write_result
from exemplar_norm.backends import backend
from exemplar_norm.moments import as_NCS, choose_passes
from exemplar_norm.passes_cpu import is_narrow

TRAFFIC = {"moments": 1, "output": 2, "sums": 2, "dX": 3}
"""Pass → X-sized tensors that it reads or writes."""
FORMS = ("eager", "compiled", "triton")
"""The last one runs on a GPU alone."""
COPY = "copy"


def passes_of(form: Any, x: torch.Tensor, dy: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The passes of a form over X, as a layer in training calls them."""
    with backend(form):
        ops = choose_passes(x)
    out = torch.empty_like(x)
    if not ops.KEEPS_DTYPE and is_narrow(x):
        return {}  # it would be given float32 copies, which are not counted here
    x_NCS, dy_NCS, out_NCS = (as_NCS(t, x, ops) for t in (x, dy, out))
    mean, var = ops.moments(x_NCS)
    scale = (var + 1e-5).rsqrt()
    shift, slope = torch.zeros_like(mean), torch.full_like(mean, 1e-3)
    return {
        "moments": lambda: ops.moments(x_NCS),
        "output": lambda: ops.affine(x_NCS, mean, scale, shift, out_NCS),
        "sums": lambda: ops.reduce(dy_NCS, x_NCS, mean),
        "dX": lambda: ops.input_grad(dy_NCS, x_NCS, mean, scale, shift, slope, slope, out_NCS),
    }


def measure_shape(
    forms: Sequence[str], shape: tuple[int, int, int, int], layout: str, rounds: int, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows, one a form and pass."""
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    x, dy = (
        torch.randn(shape, generator=generator).to(device, dtype, memory_format=FORMATS[layout])
        for _ in range(2)
    )
    runs: dict[str, Callable[[], Any]] = {COPY: x.clone}
    for form in forms:
        runs |= {f"{form} {name}": run for name, run in passes_of(form, x, dy).items()}
    seconds = interleaved(runs, rounds)
    batch, channels, size, _ = shape
    rows: list[dict[str, Any]] = []
    for run in runs:
        form, _, name = run.partition(" ")
        rows.append(
            {
                "channels": channels, "size": size, "batch": batch, "layout": layout, "form": form,
                "pass": name, **summary(seconds[run]),
            }
        )  # fmt: skip
        rows[-1]["share"] = rows[0]["ms"] / 2 * TRAFFIC.get(name, 2) / rows[-1]["ms"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: a line a shape, shares NCHW / NHWC."""
    cells = {(r["channels"], r["size"], r["layout"], r["form"], r["pass"]): r for r in rows}
    columns = [key for key in dict.fromkeys((r["form"], r["pass"]) for r in rows) if key[0] != COPY]
    layouts = list(dict.fromkeys(r["layout"] for r in rows))
    lines = []
    for channels, size, batch in dict.fromkeys((r["channels"], r["size"], r["batch"]) for r in rows):
        of = {
            lay: {key: cells[channels, size, lay, *key] for key in [(COPY, ""), *columns]} for lay in layouts
        }
        copies = " / ".join(f"{of[lay][COPY, '']['ms']:.1f}" for lay in layouts)
        shares = [" / ".join(f"{of[lay][key]['share']:.2f}" for lay in layouts) for key in columns]
        lines.append([f"{batch}×{channels}×{size}²", copies, *shares])
    names = [f"{form} {name}" for form, name in columns]
    return markdown(["input", f"copy, ms ({' / '.join(layouts)})", *names], lines)


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__, rounds=31, batch=32)
    options.add_argument("--shapes", nargs="+", default=SHAPES, metavar="CxS")
    options.add_argument("--forms", nargs="+", choices=FORMS)
    args = options.parse_args()
    torch.set_num_threads(1)
    use_allocator(args.allocator)
    forms = args.forms or FORMS[: 2 if args.device == "cpu" else 3]
    rows = []
    for text in args.shapes:
        channels, size = (int(number) for number in text.split("x"))
        shape = (args.batch, channels, size, size)
        for layout in FORMATS:
            found = measure_shape(forms, shape, layout, args.rounds, args.device, getattr(torch, args.dtype))
            rows += found
            line = ", ".join(f"{r['form']} {r['pass']} {r['share']:.2f}" for r in found[1:])
            print(f"{text} {layout}: {line}", flush=True)
    print(f"\n{table(rows)}\n\nwritten: {write_result('passes', rows, args.device, args.dtype)}")


if __name__ == "__main__":
    main()
