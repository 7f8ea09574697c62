"""Pictures of what `benchmarks.gate_diagnosis` has measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.drawing import SMALL, TITLE, Result, Row, canvas, caption, finish, plain_log
from tasks.report.colors import HEAT_COLOR, LESS_COLOR, MORE_COLOR, OTHER_COLOR, norm_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"styled": "styled digits", "fashion": "styled Fashion-MNIST"}
GATES = {"published": "published gate", "standardised, rate 30": "standardised, rate 30"}
_LIGHT = "#c3d6ee"
"""Colour of the first layer; that of the last is the deepest of a matrix."""


def draw_spread(result: Result) -> Figure | None:
    """How far v and λ differ between samples, a line a layer, over the steps of training."""
    cases = [case for case in TITLES if any(row["case"] == case for row in result["rows"])]
    if not cases:
        return None
    quantities: dict[str, Callable[[Row], float]] = {
        "std of v / mean of v\nover samples": lambda row: row["v_spread"],
        "std over samples\nof what FC₁ is given": lambda row: row["seen_std_norm"],
        "std of λ\nover samples": lambda row: max(row["ratio_std"]),
    }
    panels_of = [(case, variant) for case in cases for variant in GATES]
    figure, panels = canvas(len(quantities), len(panels_of), 6.6, sharex=True, sharey="row")
    for column, (case, variant) in enumerate(panels_of):
        rows = [row for row in result["rows"] if (row["case"], row["variant"]) == (case, variant)]
        for line, (label, value) in enumerate(quantities.items()):
            axes = panels[line][column]
            draw_layers(axes, rows, value)
            if column == 0:
                plain_log(axes, "y", [10.0**power for power in range(-8, 3)])
                axes.set_ylabel(label, fontsize=SMALL)
        panels[0][column].set_title(f"{TITLES[case]}\n{GATES[variant]}", loc="left", fontsize=TITLE - 1)
        panels[-1][column].set_xlabel("training step", fontsize=SMALL)
    count = len({row["layer"] for row in result["rows"] if row["case"] in cases})
    more = f"digits_resnet, {count} layers, 64 fixed images in training mode. v and what FC₁ is given: "
    more += "root of the sum of squares over the K² entries; λ: the normalizer whose λ differs most.\n"
    finish(figure, caption(result, more), columns=3, legend=panels[0][0])
    return figure


def draw_layers(axes: Axes, rows: list[Row], value: Callable[[Row], float]) -> None:
    """A line a layer from the first (light) to the last (dark), and their median."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("depth", [_LIGHT, HEAT_COLOR, "#0b2347"])
    names = list(dict.fromkeys(row["layer"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    values = np.full((len(names), len(steps)), np.nan)
    for row in rows:
        found = value(row)
        # λ = 1/K at the start: its deviation, 0, has no place on a logarithmic axis.
        values[names.index(row["layer"]), steps.index(row["step"])] = found if found > 0 else np.nan
    for k, line in enumerate(values):
        label = {0: "first layer", len(names) - 1: "last layer"}.get(k)
        axes.plot(steps, line, color=ramp(k / max(len(names) - 1, 1)), linewidth=0.8, label=label)
    known = ~np.isnan(values).all(0)
    middle = np.nanmedian(values[:, known], 0)
    axes.plot(np.array(steps)[known], middle, color="black", linewidth=2, label="median of the layers")


def draw_gradients(result: Result) -> Figure | None:
    """Gradient norms, λ of "bn" and the output of the last layer, while a converted network is fine-tuned."""
    rows = [row for row in result["rows"] if row["case"] == "lite0"]
    if not rows:
        return None
    last = rows[-1]["layer"]
    rates = {"en, rate 1": ("gate_rate = 1", "--"), "en": ("gate_rate = 1/C (default)", "-")}
    figure, panels = canvas(2, 2, 5.6, sharex=True)
    for column, (variant, (title, _)) in enumerate(rates.items()):
        axes = panels[0][column]
        draw_norms(axes, [r for r in rows if (r["variant"], r["layer"]) == (variant, last)])
        axes.set_title(f"gradients at the last layer, {title}", loc="left", fontsize=TITLE)
        axes.set_ylabel("Euclidean norm", fontsize=SMALL)
    panels[0][1].sharey(panels[0][0])
    plain_log(panels[0][0], "y", [10.0**power for power in range(-6, 2)])
    for variant, (title, dashes) in rates.items():
        own = [row for row in rows if (row["variant"], row["layer"]) == (variant, last)]
        steps = [row["step"] for row in own]
        bn = [row["ratio_mean"][row["normalizers"].index("bn")] for row in own]
        panels[1][0].plot(steps, bn, dashes, color=norm_color("bn"), label=title)
        scale = [row["output_std"] / own[0]["output_std"] for row in own]
        panels[1][1].plot(steps, scale, dashes, color=norm_color("en"), label=title)
    titles = ("mean λ of bn, last layer", "std of the last layer's output / at the start")
    for axes, told in zip(panels[1], titles, strict=True):
        axes.set_title(told, loc="left", fontsize=TITLE)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("fine-tuning step", fontsize=SMALL)
        axes.legend(fontsize=SMALL, frameon=False)
    more = (
        f"EfficientNet-Lite0 converted to EN, last layer {last}, C = {rows[-1]['channels']}; SGD, rate 3e-3, "
    )
    finish(figure, caption(result, more + "two images a step; 8 fixed images in training mode.\n"))
    return figure


def draw_norms(axes: Axes, rows: list[Row]) -> None:
    """Norms at λ, the gate, γ and β over the steps; what is 0 is said, as a logarithmic axis has no 0."""
    kinds: dict[str, tuple[str, str, str, Callable[[str], bool]]] = {
        "λ": ("black", "o", "-", lambda key: key == "ratio"),
        "gate": (LESS_COLOR, "s", "-", lambda key: key.startswith("gate.")),
        "γ": (MORE_COLOR, "^", "-", lambda key: key == "weight"),
        "β": (OTHER_COLOR, "D", "--", lambda key: key == "bias"),
    }
    steps = np.array([row["step"] for row in rows])
    dead = None
    for label, (color, marker, dashes, belongs) in kinds.items():
        squares = [sum(value**2 for key, value in row["gradients"].items() if belongs(key)) for row in rows]
        norms = np.sqrt(np.array(squares))
        shown = norms > 0
        axes.plot(
            steps[shown], norms[shown], dashes, color=color, marker=marker, markersize=3.5, linewidth=1.2,
            label=label,
        )  # fmt: skip
        if label == "λ" and not shown.all():
            dead = steps[int(np.argmin(shown))]
    if dead is not None:
        axes.axvspan(dead, steps[-1], color=OTHER_COLOR, alpha=0.15, linewidth=0)
        axes.text(
            (dead + steps[-1]) / 2, 0.5, f"all are 0\nfrom step {dead}", fontsize=SMALL, ha="center",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.legend(fontsize=SMALL, frameon=False, ncols=2)


def draw_reduced(result: Result) -> Figure | None:
    """Deviation of v and of λ between samples against C/r, a mark a layer."""
    rows: list[Row] = result["rows"]
    if not rows:
        return None
    figure, [panels] = canvas(1, 2, 3.9)
    series = [
        (case, variant, marker, variant == "published")
        for case, marker in (("styled", "o"), ("fashion", "^"))
        for variant in GATES
    ]
    for case, variant, marker, filled in series:
        own = last_of(rows, case, variant)
        label = f"{TITLES[case]}, {GATES[variant]}"
        at = shifted([row["reduced"] for row in own], series.index((case, variant, marker, filled)) - 1.5)
        for axes, values in zip(
            panels, ([r["v_std_norm"] for r in own], [max(r["ratio_std"]) for r in own]), strict=True
        ):
            draw_marks(axes, at, values, marker, filled, label)
    lite0 = [row for row in rows if (row["case"], row["variant"], row["step"]) == ("lite0", "en", 0)]
    at, values = shifted([row["reduced"] for row in lite0], 0), [row["v_std_norm"] for row in lite0]
    panels[0].plot(
        at,
        values,
        "x",
        color=OTHER_COLOR,
        markersize=4.5,
        label="EfficientNet-Lite0, just converted",
    )
    told = ("std of v over samples", "std of λ over samples, at the end of training")
    for axes, title in zip(panels, told, strict=True):
        axes.set_xlabel("C/r", fontsize=SMALL)
        axes.set_title(title, loc="left", fontsize=TITLE)
        plain_log(axes, "x", [1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
        plain_log(axes, "y", [10.0**power for power in range(-8, 2)])
    more = "One mark a layer, moved a little sideways. v: root of the sum of squares over the K² entries; "
    finish(
        figure,
        caption(result, more + "λ: the normalizer whose λ differs most.\n"),
        columns=3,
        legend=panels[0],
    )
    return figure


def last_of(rows: Sequence[Row], case: str, variant: str) -> list[Row]:
    """The rows of a run's last look."""
    own = [row for row in rows if (row["case"], row["variant"]) == (case, variant)]
    last = max((row["step"] for row in own), default=0)
    return [row for row in own if row["step"] == last]


def shifted(values: list[int], by: float) -> list[float]:
    """The values on a logarithmic axis, moved so that series do not cover each other."""
    return [value * 1.07**by for value in values]


def draw_marks(
    axes: Axes, at: list[float], values: list[float], marker: str, filled: bool, label: str
) -> None:
    """Marks of one series in EN's colour."""
    color = norm_color("en")
    axes.plot(
        at, values, marker, color=color, markerfacecolor=color if filled else "none", markersize=4.5,
        markeredgewidth=0.9, label=label,
    )  # fmt: skip


PICTURES: dict[str, Callable[[Result], Figure | None]] = {
    "gate-spread": draw_spread,
    "gate-gradients": draw_gradients,
    "gate-reduced": draw_reduced,
}
"""Picture → what draws it, or returns None where its cases are missing."""
