"""Figures over the classes of a task: confusions, a value of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.report import figures
from tasks.report.colors import HEAT_COLOR
from tasks.report.page import Html

FEW = 40
"""Classes up to which each is shown by itself."""
_COARSE = 100


def confusion_matrix(
    share: NDArray[np.float64], names: Sequence[str], cells: NDArray[np.str_] | None = None
) -> Html:
    """Rows are true classes, columns predicted ones; many classes are merged into blocks.

    Args:
        share: (classes, classes) share of a true class that is taken for each.
        names: Name of each class.
        cells: (classes, classes) text of each cell; None for none.
    """
    if len(share) > FEW:
        return _blocks(share)
    side = max(3.6, 0.9 + 0.26 * len(share))
    drawing, axes = figures.plot(side + 0.7, side)
    # The square root makes few mistakes visible beside a full diagonal.
    axes.imshow(np.sqrt(share), cmap=figures.heat_colors(), vmin=0, vmax=1, interpolation="nearest")
    shown = [short(name) for name in names]
    axes.set_xticks(range(len(share)), shown, rotation=90 if max(map(len, shown)) > 2 else 0, fontsize=8)
    axes.set_yticks(range(len(share)), shown, fontsize=8)
    axes.grid(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if cells is not None:
        for row, column in np.argwhere(share):
            color = "white" if share[row, column] > 0.3 else "black"
            text = str(cells[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    return figures.figure(drawing, f"Confusion matrix of {len(share)} classes")


def _blocks(share: NDArray[np.float64]) -> Html:
    length = -(-len(share) // _COARSE)
    starts = np.arange(0, len(share), length)
    blocks = np.add.reduceat(np.add.reduceat(share, starts, axis=0), starts, axis=1)
    blocks /= np.diff([*starts, len(share)])[:, None]
    drawing, axes = figures.plot(5.2, 4.6)
    extent = (-0.5, len(share) - 0.5, len(share) - 0.5, -0.5)
    axes.imshow(
        np.sqrt(blocks), cmap=figures.heat_colors(), vmin=0, vmax=1, interpolation="nearest", extent=extent
    )
    axes.grid(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    merged = f", {length} × {length} classes a cell" if length > 1 else ""
    caption = f"Share of a true class that is taken for another{merged}."
    return figures.figure(drawing, f"Confusion matrix of {len(share)} classes", caption)


def bars(values: NDArray[np.float64], names: Sequence[str], measure: str) -> Html:
    """A bar for each class, a histogram of many; classes of value NaN are left out.

    Args:
        values: (classes,) fractions.
        names: Name of each class.
        measure: What they are.
    """
    known = np.flatnonzero(~np.isnan(values))
    if len(values) > FEW:
        drawing, axes = figures.plot(5.2, 3.0)
        axes.hist(values[known], bins=20, range=(0, 1), color=HEAT_COLOR, rwidth=0.92)
        axes.set_ylabel("classes")
        kind = f"Histogram of the {measure} of {len(known)} classes"
    else:
        drawing, axes = figures.plot(5.2, 0.9 + 0.24 * len(known))
        drawn = axes.barh(range(len(known)), values[known], color=HEAT_COLOR, height=0.72)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values[known]], padding=3, fontsize=8)
        axes.set_yticks(range(len(known)), [short(names[index]) for index in known.tolist()], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.09)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="y", visible=False)
        kind = f"{measure[0].upper()}{measure[1:]} of each of {len(known)} classes"
    axes.set_xlabel(measure)
    told = f"{kind}: mean {values[known].mean():.4f}, lowest {values[known].min():.4f}"
    return figures.figure(drawing, told, f"{told}, highest {values[known].max():.4f}.")


def short(name: str) -> str:
    """A name cut to fit beside a figure."""
    return name if len(name) <= 18 else f"{name[:17]}…"


def percent(share: float) -> str:
    """A share with one digit."""
    return f"{100 * share:.1f} %"


def most_confused(
    confusion: NDArray[np.int64], names: Sequence[str], what: str, count: int = 10
) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """Header and rows of a table of the pairs of classes that are confused most often.

    Args:
        confusion: (classes, classes) numbers by true and by predicted class.
        names: Name of each class.
        what: What is counted.
        count: Rows at most.
    """
    totals, wrong = confusion.sum(axis=1), confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count].tolist()
    pairs = [divmod(place, len(wrong)) for place in order]
    rows = [
        (names[true], names[other], f"{wrong[true, other]:,}", percent(wrong[true, other] / totals[true]))
        for true, other in pairs
        if wrong[true, other]
    ]
    return ["true", "predicted", what, "share of the true class"], rows
