"""What the report of a segmentation run adds: predictions as pictures, IoU by class, confusions."""

from __future__ import annotations

from functools import partial

import numpy as np

from tasks.report import Html, Section, classes, figures, page
from tasks.segmentation.data import SegmentationDataModule
from tasks.segmentation.labels import IGNORE
from tasks.segmentation.record import Outcome
from tasks.segmentation.results import examples_of

_SPLITS = {"val": "validation", "test": "test"}
_LONGEST = 320
"""Longer side of one of the three pictures of an example."""


def segmentation_sections(outcome: Outcome | None, data: SegmentationDataModule) -> list[Section]:
    """The sections of a run's report; none where nothing was evaluated."""
    if outcome is None or not outcome.confusion.sum():
        return []
    parts = {"Predictions": _predictions, "IoU by class": _iou, "Confusion matrix": _confusion}
    split = _SPLITS[outcome.split]
    return [Section(f"{title} ({split})", partial(build, outcome, data)) for title, build in parts.items()]


def _names(data: SegmentationDataModule) -> list[str]:
    return [data.class_name(index) for index in range(data.num_classes)]


def _predictions(outcome: Outcome, data: SegmentationDataModule) -> Html:
    shown, seen = [], set[int]()
    for example in examples_of(outcome, data):
        small = example.within(_LONGEST)
        seen |= {*small.mask.flatten().tolist(), *small.predicted.flatten().tolist()} - {IGNORE}
        is_labelled = example.mask != IGNORE
        right = (example.predicted == example.mask)[is_labelled].float().mean()
        share = f"{classes.percent(float(right))} of the labelled pixels are right"
        alt = f"{example.name}: image, true classes, predicted classes"
        told = f"{example.name}: {share if is_labelled.any() else 'no pixel is labelled'}"
        shown.append(figures.picture(small.comparison(data), alt, told, longest=3 * _LONGEST))
    legend = (
        page.swatch("#{:02x}{:02x}{:02x}".format(*data.labels.palette[index]), f"{data.class_name(index)}  ")
        for index in sorted(seen)
    )
    told = "Image, truth and prediction. Unlabelled pixels, which do not count, are left as they are in both."
    return page.join([page.paragraph(told, "note"), page.paragraph(page.join(legend)), page.grid(shown)])


def _iou(outcome: Outcome, data: SegmentationDataModule) -> Html:
    return classes.bars(outcome.iou, _names(data), "IoU")


def _confusion(outcome: Outcome, data: SegmentationDataModule) -> Html:
    totals, names = outcome.confusion.sum(axis=1), _names(data)
    share = outcome.confusion / np.maximum(totals, 1)[:, None]
    wrong = 1 - outcome.confusion.trace() / totals.sum()
    header, rows = classes.most_confused(outcome.confusion, names, "pixels")
    told = (
        f"{totals.sum():,} labelled pixels, {classes.percent(float(wrong))} of them taken for another class. "
        "Rows are true classes, columns predicted ones."
    )
    return page.join(
        [
            page.paragraph(told),
            classes.confusion_matrix(share, names),
            page.subheading("Most confused pairs"),
            page.table(header, rows, "Most confused pairs", "llrr"),
        ]
    )
