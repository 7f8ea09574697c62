"""What was to be reached beside what was measured, from results/layer*.json and results/network*.json.

    python -m benchmarks.goals [--write]

Prints a Markdown table; --write puts it between the marks of docs/performance.md. Ranges are over the shapes;
each figure but a count is a ratio within one interleaved run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.document import has_marks, replace_between

Row = dict[str, Any]
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
LARGE = "32 images of 224²"
MARKS = "<!-- goals -->", "<!-- /goals -->"


def rows_of(name: str) -> list[Row]:
    """The rows of a result; none where it was not measured."""
    path = measure.RESULTS / f"{name}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


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
    return f"{min(found):.2f}–{max(found):.2f}" if found else "not measured"


def of_layers(rows: list[Row]) -> list[list[str]]:
    """Goals of a layer."""

    def both(candidate: str, baseline: str, keep: Callable[[int], bool], key: str = "ms") -> str:
        return " / ".join(ratios(rows, candidate, baseline, lay, keep, key) for lay in ("NCHW", "NHWC"))

    large, small, each = (lambda s: s >= 28), (lambda s: s == 7), (lambda s: True)
    return [
        ["layer, eager, ≥ 28², × BN", "≤ 1.0 / ≤ 1.2", both("EN eager", "BN", large)],
        ["layer, compiled, ≥ 28², × BN", "≤ 0.75 / ≤ 1.0", both("EN compiled", "BN", large)],
        ["layer in a compiled network, ≥ 28², × BN", "", both("EN in a compiled network", "BN", large)],
        ["compiled BN, ≥ 28², × BN", "", both("BN compiled", "BN", large)],
        ["layer, eager, 7², × BN", "≤ 1.3 / ≤ 1.8", both("EN eager", "BN", small)],
        ["layer, eager, × plain SN", "≤ 0.2", both("EN eager", "SN plain", each)],
        ["EN with ReLU × BN, ReLU", "< 0.8", both("EN with ReLU", "BN, ReLU", large)],
        ["the same, saved bytes, ≥ 28²", "≤ 0.6", both("EN with ReLU", "BN, ReLU", large, "saved")],
    ]


def of_launches(rows: list[Row], on_gpu: list[Row]) -> list[list[str]]:
    """What a layer launches, forward and backward; the passes of large maps are cut in more pieces."""

    def both(rows: list[Row], candidate: str, layout: str) -> str:
        ways = []
        for key in ("launches_forward", "launches_backward"):
            found = [
                r[key] for r in rows if (r["candidate"], r["layout"]) == (candidate, layout) and key in r
            ]
            if not found:
                return "not measured"
            ways.append(f"{min(found)}–{max(found)}" if min(found) < max(found) else f"{found[0]}")
        return " / ".join(ways)

    title = "operations forward / backward"
    return [
        *(
            [f"{name}, {title}, {layout}", "", both(rows, name, layout)]
            for name in ("EN eager", "EN in a compiled network")
            for layout in ("NCHW", "NHWC")
        ),
        [f"EN triton on a GPU, {title}, NCHW", "≤ 5 / ≤ 6", both(on_gpu, "EN triton", "NCHW")],
        [f"EN triton on a GPU, {title}, NHWC", "≤ 6 / ≤ 7", both(on_gpu, "EN triton", "NHWC")],
    ]


def of_networks(eager: list[Row], compiled: list[Row], large: list[Row]) -> list[list[str]]:
    """Goals of ResNet-50."""

    def step(rows: list[Row], key: str, form: str = ".2f") -> str:
        found = [
            r
            for r in rows
            if (r["network"], r["mode"], r["candidate"]) == ("resnet50", "training step", "en")
        ]
        return f"{found[0][key]:{form}}" if found else "not measured"

    small = "8 images of 128²"
    return [
        [f"ResNet-50 step, eager, {small}", "≤ 1.08", step(eager, "ms_ratio")],
        [f"ResNet-50 step, eager, {LARGE}", "≤ 1.08", step(large, "ms_ratio")],
        [f"ResNet-50 step, compiled, {small}", "≤ 1.03", step(compiled, "ms_ratio")],
        ["compile time of ResNet-50, × BN", "≤ 1.5", step(compiled, "compile_ratio")],
        ["graph breaks of ResNet-50", "0", step(compiled, "graph_breaks", "")],
        [f"saved activations, ResNet-50, {LARGE}", "≤ 1.02", step(large, "saved_ratio", ".3f")],
    ]


def table() -> str:
    """All goals as Markdown."""
    layers, on_gpu = rows_of("layer"), rows_of("layer-cuda-float32")
    lines = [
        *of_layers(layers),
        *of_launches(layers, on_gpu),
        *of_networks(*map(rows_of, ("network", "network-compiled", "network-32x224"))),
    ]
    return measure.markdown(["CPU, one thread (NCHW / NHWC)", "goal", "measured"], lines)


def main() -> None:
    """Print the table, and write it where there is a place for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write, text = parser.parse_args().write, table()
    print(text)
    if write:
        if has_marks(DOCUMENT, *MARKS):
            replace_between(DOCUMENT, *MARKS, f"\n{text}\n")
            print(f"\nwritten: {DOCUMENT}")
        else:
            print(f"\nnot written: {DOCUMENT} has no lines {' … '.join(MARKS)}")


if __name__ == "__main__":
    main()
