"""What was to be reached beside what was measured, from results/layer.json and results/network*.json.

    python -m benchmarks.goals

Prints a Markdown table. Ranges are over the shapes; each figure is a ratio within one interleaved run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks import measure

Row = dict[str, Any]


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


def of_networks(eager: list[Row], compiled: list[Row]) -> list[list[str]]:
    """Goals of ResNet-50."""

    def step(rows: list[Row], key: str) -> str:
        found = [
            r
            for r in rows
            if (r["network"], r["mode"], r["candidate"]) == ("resnet50", "training step", "en")
        ]
        return f"{found[0][key]:.2f}" if found else "not measured"

    at = f"{eager[0]['batch']} images of {eager[0]['size']}²" if eager else "not measured"
    return [
        [f"ResNet-50 step, eager, {at}", "≤ 1.08", step(eager, "ms_ratio")],
        [f"ResNet-50 step, compiled, {at}", "≤ 1.03", step(compiled, "ms_ratio")],
        ["compile time of ResNet-50, × BN", "≤ 1.5", step(compiled, "first_ratio")],
        [f"saved activations, ResNet-50, {at}", "≤ 1.02", step(eager, "saved_ratio")],
    ]


def main() -> None:
    """Print the table."""
    lines = of_layers(rows_of("layer")) + of_networks(rows_of("network"), rows_of("network-compiled"))
    print(measure.markdown(["CPU, one thread (NCHW / NHWC)", "goal", "measured"], lines))


if __name__ == "__main__":
    main()
