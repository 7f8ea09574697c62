"""The pictures of a comparison: every seed a dot beside the interval of the mean, and the curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

from tasks.compare.results import Result
from tasks.compare.summary import Summary, percent, with_interval
from tasks.report import figures
from tasks.report.colors import norm_color
from tasks.report.page import Html

_ROW = 0.46
_SPREAD = 0.16


def dots(summaries: Sequence[Summary], metric: str) -> Html:
    """A row a normalizer: each seed as a dot, the mean and its interval above them."""
    shown = [summary for summary in summaries if summary.mean]
    drawing, axes = figures.plot(4.9, 1.05 + _ROW * len(shown))
    for row, summary in enumerate(shown):
        color, values = norm_color(summary.norm), list(summary.values.values())
        steps = max(len(values) - 1, 1)
        # Seeds of a row a little apart, or those that agree would hide each other.
        heights = [row + _SPREAD * (0.7 + place / steps) for place in range(len(values))]
        axes.plot([100 * value for value in values], heights, "o", color=color, markersize=5, alpha=0.6)
        mean = summary.mean
        assert mean is not None  # of those that are shown
        axes.errorbar(
            100 * mean.value, row, xerr=None if mean.half is None else 100 * mean.half,
            fmt="D", color=color, markersize=6, capsize=4, linewidth=2,
        )  # fmt: skip
    first = shown[0].mean
    if first:
        axes.axvline(100 * first.value, color=norm_color(shown[0].norm), linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(shown)), [summary.norm for summary in shown], fontsize=11)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_xlabel(f"{metric}, %", fontsize=10)
    axes.tick_params(axis="x", labelsize=9)
    told = "; ".join(
        f"{s.norm} {with_interval(s.mean)}, seeds {', '.join(map(percent, s.values.values()))}" for s in shown
    )
    return figures.figure(
        drawing,
        f"{metric} in per cent by normalizer: {told}",
        f"Diamond and line: mean and its 95 % interval over seeds. Dots: the seeds. Dotted: the mean of "
        f"{shown[0].norm}.",
    )


def curves(summaries: Iterable[Summary], metric: str) -> Html:
    """The validation metric over epochs: mean over seeds as a line, smallest to largest as a band."""
    drawing, axes = figures.plot(4.9, 3.3)
    told = []
    for summary in summaries:
        color = norm_color(summary.norm)
        at = by_epoch(summary.results)
        if not at:
            continue
        epochs = list(at)
        means = [100 * sum(values) / len(values) for values in at.values()]
        low, high = ([100 * bound(values) for values in at.values()] for bound in (min, max))
        marker = "o" if len(epochs) <= 25 else ""  # one point alone makes no line
        axes.plot(epochs, means, label=summary.norm, color=color, linewidth=1.6, marker=marker, markersize=3)
        axes.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)
        told.append(f"{summary.norm} from {means[0]:.2f} to {means[-1]:.2f}")
    figures.over_epochs(axes)
    axes.set_ylabel(f"{metric}, %", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.legend(frameon=False, fontsize=9)
    return figures.figure(
        drawing,
        f"{metric} in per cent over epochs, mean over seeds: {'; '.join(told)}",
        "Lines: means over seeds. Bands: from the smallest to the largest of them.",
    )


def by_epoch(results: Iterable[Result]) -> dict[float, list[float]]:
    """The validation metric of all seeds by epoch, where it is a number."""
    found: dict[float, list[float]] = {}
    for result in results:
        curve = result.curve.thinned()
        for epoch, value in zip(curve.epochs, curve.values, strict=True):
            if isfinite(value):
                found.setdefault(round(epoch, 3), []).append(value)
    return dict(sorted(found.items()))
