"""The curves of a run: losses, metrics and learning rate over epochs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING

from tasks.report import figures
from tasks.report.colors import norm_color
from tasks.report.metrics import TEST, Curve
from tasks.report.page import Html, grid, paragraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def curves_of_run(curves: dict[str, Curve], monitor: str, best: float | None) -> Html:
    """Small figures side by side: losses, validation metrics, what else is logged in training.

    Args:
        curves: See `read_metrics`.
        monitor: Metric by which the best checkpoint is chosen.
        best: Its value, which is marked.
    """
    groups = _grouped(name for name in curves if not name.startswith(TEST))
    if not groups:
        return paragraph("Nothing was logged.", "note")
    return grid(
        _figure(title, {name: curves[name] for name in names}, monitor, best)
        for title, names in groups.items()
    )


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        split, _, metric = name.partition("/")
        if metric == "loss":
            title = "Loss"
        elif metric == "lr":
            title = "Learning rate"
        else:
            title = "Validation" if split == "val" else "Training"
        groups.setdefault(title, []).append(name)
    order = ("Loss", "Validation", "Training", "Learning rate")
    return {title: groups[title] for title in order if title in groups}


def _figure(title: str, curves: dict[str, Curve], monitor: str, best: float | None) -> Html:
    drawing, axes = figures.plot()
    told = []
    for (name, curve), color in zip(curves.items(), cycle(_LINES), strict=False):
        line = curve.thinned()
        axes.plot(
            line.epochs,
            line.values,
            label=name,
            color=color,
            linewidth=1.6,
            marker="o" if len(line.values) <= 25 else "",  # one point alone makes no line
            markersize=3,
        )
        told.append(f"{name} from {curve.values[0]:.4g} to {curve.values[-1]:.4g}")
        if name == monitor and best is not None:
            nearest = min(range(len(curve.values)), key=lambda i: abs(curve.values[i] - best))
            place = (curve.epochs[nearest], curve.values[nearest])
            label = f"best {best:.4f}"
            axes.plot(*place, "o", markersize=9, markerfacecolor="none", color=color, label=label)
    _label(axes, title)
    axes.legend(frameon=False, fontsize=8)
    return figures.figure(drawing, f"{title} over epochs: {'; '.join(told)}")


def overlay(title: str, metric: str, runs: Iterable[tuple[str, Curve]]) -> Html:
    """The same metric of several runs, coloured by normalizer.

    Args:
        title: Heading of the figure.
        metric: What is drawn.
        runs: Normalizer and curve of each run.
    """
    drawing, axes = figures.plot(5.4, 3.6)
    named: set[str] = set()
    for norm, curve in runs:
        line = curve.thinned()
        label = "" if norm in named else norm
        named.add(norm)
        axes.plot(line.epochs, line.values, color=norm_color(norm), label=label, alpha=0.85, linewidth=1.4)
    _label(axes, title)
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=9, title="normalizer")
    return figures.figure(
        drawing, f"{title}: {metric} over epochs, one line a run, by {', '.join(sorted(named))}"
    )


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    figures.over_epochs(axes)
