"""What the report of an image classifier adds: confusions, accuracy by class, pictures of mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tasks.classification.mistakes import Mistake, Outcome
from tasks.report import Html, Section, classes, figures, page
from tasks.report.classes import short

_COUNTED = 12
"""Classes up to which the cells of the matrix hold their numbers."""
_STRIP = 8
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


class LabelledPictures(Pictures, Protocol):
    """What is asked of a data module whose training images are shown."""

    def labels(self, split: str) -> NDArray[np.int64]:
        """(N,) classes of a split."""


def training_pictures(data: LabelledPictures) -> Section:
    """A strip of training images, so that one sees what the data is."""
    return Section("Training data", partial(_training, data), at_top=True)


def _training(data: LabelledPictures) -> Html:
    """An image of each of some classes, which are spread over all of them."""
    labels = data.labels("train")
    known = np.unique(labels)
    places = np.unique(np.linspace(0, len(known) - 1, min(_STRIP, len(known))).round().astype(int))
    # Of few classes, each comes again with its next images.
    again = -(-_STRIP // len(places))
    shown = [
        (int(known[place]), int(index))
        for place in places
        for index in np.flatnonzero(labels == known[place])[:again]
    ][:_STRIP]
    strip = figures.pictures(
        [
            figures.picture(
                data.picture("train", index),
                f"training sample {data.sample_name('train', index)}: {data.class_name(label)}",
                short(data.class_name(label)),
            )
            for label, index in shown
        ]
    )
    told = _styles_in_words(data)
    return page.join([page.paragraph(told, "note"), strip]) if told else strip


def _styles_in_words(data: object) -> str:
    """Which styles each training image has; empty for data without."""
    held_back = getattr(data, "held_back", [])
    styles = [style for style in getattr(data, "styles", None) or [] if style not in held_back]
    if not styles:
        return ""
    *others, last = styles
    return f"Each image under its own {', '.join(others)}{' and ' if others else ''}{last}."


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


def _names(outcome: Outcome, data: Pictures) -> list[str]:
    return [data.class_name(index) for index in range(len(outcome.confusion))]


def _confusion(outcome: Outcome, data: Pictures) -> Html:
    total, names = outcome.totals.sum(), _names(outcome, data)
    share = outcome.confusion / np.maximum(outcome.totals, 1)[:, None]
    is_counted = len(names) <= _COUNTED
    parts = [
        page.paragraph(
            f"{total:,} images, {int(total - outcome.confusion.trace()):,} of "
            "them taken for another class. Rows are true classes, columns predicted ones."
        ),
        classes.confusion_matrix(share, names, outcome.confusion.astype(str) if is_counted else None),
    ]
    header, rows = classes.most_confused(outcome.confusion, names, "images")
    if rows and not is_counted:
        parts += [
            page.subheading("Most confused pairs"),
            page.table(header, rows, "Most confused pairs", "llrr"),
        ]
    return page.join(parts)


def _by_class(outcome: Outcome, data: Pictures) -> Html:
    return classes.bars(outcome.accuracy, _names(outcome, data), "accuracy")


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
    shown = _pictures(outcome.split, examples, data, lambda m: f"→ {short(data.class_name(m.predicted))}")
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
                    f"{short(data.class_name(m.true))} → {short(data.class_name(m.predicted))} "
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
