"""What was to be reached beside what was measured, from results/{layer,network,passes}*.json.

    python -m benchmarks.goals [--write]

Prints Markdown tables, of single passes and of the layer too; --write puts them between their marks in
docs/performance.md and README.md. Ranges are over the shapes; each figure but a count is a ratio within one
interleaved run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import layer, measure, passes
from benchmarks.document import has_marks, replace_between

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
LARGE = "32 images of 224²"
NOTHING = "not measured"
DTYPES = ("float32", "bfloat16")
LAYERS = {"layer-2026-11-24": "float32", "layer": "float32", "layer-cpu-bfloat16": "bfloat16"}
"""Results of layers on a CPU, and what of; the first is kept from another machine."""
SHOWN = ("BN", "EN eager", "EN compiled", "EN in a compiled network", "SN plain", "EN textbook")
"""Candidates of the README."""


def result_of(name: str) -> Row:
    """A result with its machine; without rows where it was not measured."""
    path = measure.RESULTS / f"{name}.json"
    result: Row = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return result


def rows_of(name: str) -> list[Row]:
    """The rows of a result."""
    rows: list[Row] = result_of(name)["rows"]
    return rows


def date_of(name: str) -> str:
    """When a result was measured."""
    date: str = result_of(name).get("machine", {}).get("date", "")
    return date


def ratios(
    rows: list[Row], candidate: str, baseline: str, layout: str, keep: Callable[[int], bool], key: str = "ms"
) -> str:
    """Smallest to largest ratio of two candidates over the shapes whose size is kept."""
    cells = {(r["channels"], r["size"], r["candidate"]): r[key] for r in rows if r["layout"] == layout}
    shapes = dict.fromkeys((channels, size) for channels, size, _ in cells if keep(size))
    found = [
        cells[*shape, candidate] / cells[*shape, baseline]
        for shape in shapes
        if (*shape, candidate) in cells and (*shape, baseline) in cells
    ]
    return f"{min(found):.2f}–{max(found):.2f}" if found else NOTHING


def of_layers(rows: list[Row]) -> list[list[str]]:
    """Goals of a layer on a CPU."""

    def both(candidate: str, baseline: str, keep: Callable[[int], bool], key: str = "ms") -> str:
        return " / ".join(ratios(rows, candidate, baseline, lay, keep, key) for lay in ("NCHW", "NHWC"))

    large, middle, small = (lambda s: s >= 28), (lambda s: s == 14), (lambda s: s == 7)
    return [
        ["eager, ≥ 28², × BN", "≤ 1.0 / ≤ 1.2", both("EN eager", "BN", large)],
        ["eager, 14², × BN", "", both("EN eager", "BN", middle)],
        ["eager, 7², × BN", "≤ 1.3 / ≤ 1.8", both("EN eager", "BN", small)],
        ["compiled, ≥ 28², × BN", "≤ 0.75 / ≤ 1.0", both("EN compiled", "BN", large)],
        ["in a compiled network, ≥ 28², × BN", "", both("EN in a compiled network", "BN", large)],
        ["compiled BN, ≥ 28², × BN", "", both("BN compiled", "BN", large)],
        ["eager, ≥ 28², × plain SN", "≤ 0.2", both("EN eager", "SN plain", large)],
        ["eager, 14², × plain SN", "≤ 0.2", both("EN eager", "SN plain", middle)],
        ["eager, 7², × plain SN", "≤ 0.2", both("EN eager", "SN plain", small)],
        ["EN with ReLU, ≥ 28², × BN and ReLU", "< 0.8", both("EN with ReLU", "BN, ReLU", large)],
        ["the same, saved bytes", "≤ 0.6", both("EN with ReLU", "BN, ReLU", large, "saved")],
    ]


def of_launches(rows: list[Row]) -> list[list[str]]:
    """What a layer on a CPU launches; the passes of large maps are cut in more pieces."""
    return [
        [f"{name}, operations forward / backward, {layout}", "", launched(rows, name, layout)]
        for name in ("EN eager", "EN in a compiled network")
        for layout in ("NCHW", "NHWC")
    ]


def launched(rows: list[Row], candidate: str, layout: str) -> str:
    """Fewest to most operations over the shapes, forward / backward."""
    ways = []
    for key in ("launches_forward", "launches_backward"):
        found = [r[key] for r in rows if (r["candidate"], r["layout"]) == (candidate, layout) and key in r]
        if not found:
            return NOTHING
        ways.append(f"{min(found)}–{max(found)}" if min(found) < max(found) else f"{found[0]}")
    return " / ".join(ways)


def of_networks() -> list[list[str]]:
    """Goals of ResNet-50 on a CPU."""
    eager, compiled, large = names = "network", "network-compiled", "network-32x224"
    rows, dates = {n: rows_of(n) for n in names}, {n: date_of(n) for n in names}
    small = "8 images of 128²"
    lines = [
        (f"training step, eager, {small}, × BN", "≤ 1.08", eager, "ms_ratio", ".2f"),
        (f"training step, eager, {LARGE}, × BN", "≤ 1.08", large, "ms_ratio", ".2f"),
        (f"training step, compiled, {small}, × compiled BN", "≤ 1.03", compiled, "ms_ratio", ".2f"),
        ("compile time of it, × BN", "≤ 1.5", compiled, "compile_ratio", ".2f"),
        ("graph breaks", "0", compiled, "graph_breaks", ""),
        (f"saved activations, {LARGE}, × BN", "≤ 1.02", large, "saved_ratio", ".3f"),
    ]
    return [
        [title, goal, dates[name], of_step(rows[name], key, form)] for title, goal, name, key, form in lines
    ]


def of_step(rows: list[Row], key: str, form: str = ".2f") -> str:
    """A figure of ResNet-50 with EN in training."""
    wanted = ("resnet50", "training step", "en")
    found = [r[key] for r in rows if (r["network"], r["mode"], r["candidate"]) == wanted]
    return f"{found[0]:{form}}" if found else NOTHING


def of_gpu(dtype: str) -> list[list[str]]:
    """Goals on a GPU."""
    layers, single = rows_of(f"layer-cuda-{dtype}"), rows_of(f"passes-cuda-{dtype}")
    size = 4 if dtype == "float32" else 2
    large = [r for r in layers if r["batch"] * r["channels"] * r["size"] ** 2 * size >= 32e6]

    def share(*names: str) -> str:
        found = [r["share"] for r in single if r["form"] == "triton" and r["pass"] in names]
        return f"{min(found):.2f}–{max(found):.2f}" if found else NOTHING

    def both(of: Callable[[str], str]) -> str:
        return " / ".join(of(layout) for layout in ("NCHW", "NHWC"))

    step = {how: rows_of(f"network{how}-64x224-cuda-{dtype}") for how in ("", "-compiled")}
    return [
        ["output and dX, share of a copy's bandwidth", "≥ 0.90", share("output", "dX")],
        ["moments and sums, share of a copy's bandwidth", "≥ 0.85", share("moments", "sums")],
        ["layer, ≥ 32 MB, × BN", "≤ 1.0",
         both(lambda lay: ratios(large, "EN triton", "BN", lay, lambda size: True))],
        ["launches forward / backward, NCHW", "≤ 5 / ≤ 6", launched(layers, "EN triton", "NCHW")],
        ["launches forward / backward, NHWC", "≤ 6 / ≤ 7", launched(layers, "EN triton", "NHWC")],
        ["ResNet-50 step, eager, × BN", "≤ 1.08", of_step(step[""], "ms_ratio")],
        ["ResNet-50 step, compiled, × compiled BN", "≤ 1.03", of_step(step["-compiled"], "ms_ratio")],
    ]  # fmt: skip


def table() -> str:
    """All goals as Markdown: of a layer on a CPU, of a network there, on a GPU."""
    of_dtypes = [of_layers(rows) + of_launches(rows) for rows in map(rows_of, LAYERS)]
    headers = [f"{dtype}, {date_of(name)}".strip(", ") for name, dtype in LAYERS.items()]
    return "\n\n".join(
        [
            measure.markdown(["layer, CPU (NCHW / NHWC)", "goal", *headers], side_by_side(*of_dtypes)),
            measure.markdown(["ResNet-50, CPU, float32", "goal", "on", "measured"], of_networks()),
            measure.markdown(
                ["GPU, Triton", "goal", *DTYPES], side_by_side(*(of_gpu(dtype) for dtype in DTYPES))
            ),
        ]
    )


def side_by_side(*tables: list[list[str]]) -> list[list[str]]:
    """Lines that differ in their last cell alone, with all of these."""
    return [[*lines[0], *(line[-1] for line in lines[1:])] for lines in zip(*tables, strict=True)]


def of_passes() -> str:
    """Single passes on a CPU."""
    rows = rows_of("passes")
    return passes.table(rows) if rows else NOTHING


def of_readme() -> str:
    """The layer against BatchNorm, a few candidates of those measured."""
    rows = [r for r in rows_of("layer") if r["candidate"] in SHOWN]
    return layer.table(rows) if rows else NOTHING


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "goals": ("docs/performance.md", table),
    "passes": ("docs/performance.md", of_passes),
    "layer": ("README.md", of_readme),
}
"""Name in the marks → document and text."""


def main() -> None:
    """Print the tables, and write them where there is a place for them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name, (where, of) in TABLES.items():
        document, marks, text = ROOT / where, (f"<!-- {name} -->", f"<!-- /{name} -->"), of()
        print(f"{text}\n")
        if write and has_marks(document, *marks):
            replace_between(document, *marks, f"\n{text}\n")
            print(f"written: {document}\n")
        elif write:
            print(f"not written: {document} has no lines {' … '.join(marks)}\n")


if __name__ == "__main__":
    main()
