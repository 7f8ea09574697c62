"""What W&B shows of an image classifier: confusions, accuracy by class, pictures of mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.loggers.panels import Confusion, Histogram, Panel, Picture, Pictures, Rows

if TYPE_CHECKING:
    from tasks.classification.mistakes import Outcome
    from tasks.classification.report import Pictures as Source


def classification_panels(outcome: Outcome | None, data: Source) -> dict[str, Panel]:
    """The panels of a run; none where nothing was evaluated."""
    if outcome is None or not outcome.totals.sum():
        return {}
    split, accuracy = outcome.split, outcome.accuracy
    names = [data.class_name(index) for index in range(len(accuracy))]
    by_class = [
        [name, float(accuracy[index]), int(outcome.totals[index])]
        for index, name in enumerate(names)
        if outcome.totals[index]
    ]
    mistakes = [
        (data.sample_name(split, m.example), names[m.true], names[m.predicted], m.probability)
        for m in outcome.mistakes
    ]
    shown = [
        Picture(
            data.picture(split, m.example), f"{names[m.true]} → {names[m.predicted]} ({m.probability:.2f})"
        )
        for m in outcome.mistakes[: outcome.k]
    ]
    return {
        f"{split}/confusion": Confusion(outcome.confusion, names),
        f"{split}/accuracy_by_class": Rows(("class", "accuracy", "images"), by_class),
        f"{split}/accuracy_over_classes": Histogram(accuracy),
        f"{split}/mistakes": Rows(("example", "true", "predicted", "probability"), mistakes),
        f"{split}/most_confident_mistakes": Pictures(shown),
    }
