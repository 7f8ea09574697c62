"""What the report of an image classifier adds: confusions, accuracy by class, pictures of mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tasks.classification.mistakes import Mistake, Outcome
from tasks.report import Html, Section, figures, page
from tasks.report.colors import HEAT_COLOR

_FEW = 40
"""Classes up to which each is shown by itself."""
_COUNTED = 12
"""Classes up to which the cells of the matrix hold their numbers."""
_COARSE = 100
_WORST = 10
_EXAMPLES = 4
_SPLITS = {"val": "validation", "test": "test"}


class Pictures(Protocol):
    """What is asked of a data module."""

    def picture(self, split: str, index: int) -> Tensor:
        """Levels (3, H, W) of an image as it is before normalisation."""

    def class_name(self, index: int) -> str:
        """Name of a class."""

    def sample_name(self, split: str, index: int) -> str:
        """Name of an example."""


def classification_sections(outcome: Outcome | None, data: Pictures) -> list[Section]:
    """The sections of a run's report; none where nothing was evaluated."""
    if outcome is None or not outcome.totals.sum():
        return []
    split = _SPLITS[outcome.split]
    parts: dict[str, Callable[[Outcome, Pictures], Html]] = {
        "Confusion matrix": _confusion,
        "Accuracy by class": _by_class,
        "Worst classes": _worst_classes,
        "Most confident mistakes": _most_confident,
    }
    return [Section(f"{title} ({split})", partial(build, outcome, data)) for title, build in parts.items()]


# --- confusion matrix


def _confusion(outcome: Outcome, data: Pictures) -> Html:
    classes = len(outcome.confusion)
    share = outcome.confusion / np.maximum(outcome.totals, 1)[:, None]
    parts = [
        page.paragraph(
            f"{outcome.totals.sum():,} images, {int(outcome.totals.sum() - outcome.confusion.trace()):,} of "
            "them taken for another class. Rows are true classes, columns predicted ones."
        ),
        _matrix(share, outcome, data) if classes <= _FEW else _coarse_matrix(share),
    ]
    pairs = _most_confused(outcome, data)
    if pairs and classes > _COUNTED:
        header = ["true", "predicted", "images", "share of the true class"]
        parts += [
            page.subheading("Most confused pairs"),
            page.table(header, pairs, "Most confused pairs", "llrr"),
        ]
    return page.join(parts)


def _matrix(share: NDArray[np.float64], outcome: Outcome, data: Pictures) -> Html:
    classes = len(share)
    side = max(3.6, 0.9 + 0.26 * classes)
    drawing, axes = figures.plot(side + 0.7, side)
    # The square root makes few mistakes visible beside a full diagonal.
    axes.imshow(np.sqrt(share), cmap=figures.heat_colors(), vmin=0, vmax=1, interpolation="nearest")
    names = [_short(data.class_name(index)) for index in range(classes)]
    longest = max(map(len, names))
    axes.set_xticks(range(classes), names, rotation=90 if longest > 2 else 0, fontsize=8)
    axes.set_yticks(range(classes), names, fontsize=8)
    axes.grid(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.argwhere(outcome.confusion) if classes <= _COUNTED else ():
        color = "white" if share[row, column] > 0.3 else "black"
        count = str(outcome.confusion[row, column])
        axes.text(column, row, count, ha="center", va="center", fontsize=8, color=color)
    return figures.figure(drawing, f"Confusion matrix of {classes} classes")


def _coarse_matrix(share: NDArray[np.float64]) -> Html:
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


def _most_confused(outcome: Outcome, data: Pictures) -> list[tuple[str, str, str, str]]:
    wrong = outcome.confusion.copy()
    np.fill_diagonal(wrong, 0)
    pairs = (
        divmod(int(place), len(wrong)) for place in np.argsort(-wrong, axis=None, kind="stable")[:_WORST]
    )
    return [
        (
            data.class_name(true),
            data.class_name(predicted),
            f"{wrong[true, predicted]:,}",
            _percent(wrong[true, predicted] / outcome.totals[true]),
        )
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


# --- accuracy by class


def _by_class(outcome: Outcome, data: Pictures) -> Html:
    known = np.flatnonzero(outcome.totals)
    accuracy = outcome.accuracy
    if len(outcome.confusion) > _FEW:
        drawing, axes = figures.plot(5.2, 3.0)
        axes.hist(accuracy[known], bins=20, range=(0, 1), color=HEAT_COLOR, rwidth=0.92)
        axes.set_ylabel("classes")
        kind = f"Histogram of the accuracy of {len(known)} classes"
    else:
        drawing, axes = figures.plot(5.2, 0.9 + 0.24 * len(known))
        bars = axes.barh(range(len(known)), accuracy[known], color=HEAT_COLOR, height=0.72)
        axes.bar_label(bars, [f"{value:.3f}" for value in accuracy[known]], padding=3, fontsize=8)
        axes.set_yticks(
            range(len(known)), [_short(data.class_name(index)) for index in known.tolist()], fontsize=8
        )
        axes.invert_yaxis()
        axes.set_xlim(0, 1.09)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="y", visible=False)
        kind = f"Accuracy of each of {len(known)} classes"
    axes.set_xlabel("accuracy")
    told = f"{kind}: mean {accuracy[known].mean():.4f}, lowest {accuracy[known].min():.4f}"
    return figures.figure(drawing, told, f"{told}, highest {accuracy[known].max():.4f}.")


# --- pictures of mistakes


def _worst_classes(outcome: Outcome, data: Pictures) -> Html:
    accuracy = np.nan_to_num(outcome.accuracy, nan=1.0)
    order = np.argsort(accuracy, kind="stable")[:_WORST]
    worst = [int(index) for index in order if accuracy[index] < 1]
    if not worst:
        return page.paragraph("Every image was recognised.")
    return page.grid(_worst_class(outcome, data, true) for true in worst)


def _worst_class(outcome: Outcome, data: Pictures, true: int) -> Html:
    wrong = outcome.confusion[true].copy()
    wrong[true] = 0
    told = (
        f"accuracy {outcome.accuracy[true]:.4f} of {outcome.totals[true]:,} images, "
        f"most often taken for {data.class_name(int(wrong.argmax()))} ({wrong.max():,} ×)"
    )
    examples = [mistake for mistake in outcome.mistakes if mistake.true == true][:_EXAMPLES]
    shown = _pictures(outcome.split, examples, data, lambda m: f"→ {_short(data.class_name(m.predicted))}")
    return page.card(data.class_name(true), told, shown)


def _most_confident(outcome: Outcome, data: Pictures) -> Html:
    if not outcome.mistakes:
        return page.paragraph("Every image was recognised.")
    return page.join(
        [
            page.paragraph("Captions: true class → predicted class (probability of the prediction).", "note"),
            _pictures(
                outcome.split,
                outcome.mistakes[: outcome.k],
                data,
                lambda m: (
                    f"{_short(data.class_name(m.true))} → {_short(data.class_name(m.predicted))} "
                    f"({m.probability:.2f})"
                ),
            ),
        ]
    )


def _pictures(
    split: str, mistakes: Iterable[Mistake], data: Pictures, caption: Callable[[Mistake], str]
) -> Html:
    return figures.pictures(
        [
            figures.picture(
                data.picture(split, mistake.example),
                f"example {data.sample_name(split, mistake.example)}: {data.class_name(mistake.true)} "
                f"taken for {data.class_name(mistake.predicted)}",
                caption(mistake),
            )
            for mistake in mistakes
        ]
    )


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
