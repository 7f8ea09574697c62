"""What W&B shows of a segmentation network: confusions, IoU by class, predictions laid over the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.loggers.panels import Bars, Confusion, Histogram, Panel, Picture, Pictures, Rows

if TYPE_CHECKING:
    from tasks.segmentation.data import SegmentationDataModule
    from tasks.segmentation.record import Outcome

_LONGEST = 512


def segmentation_panels(outcome: Outcome | None, data: SegmentationDataModule) -> dict[str, Panel]:
    """The panels of a run; none where nothing was evaluated."""
    from tasks.segmentation.results import examples_of

    if outcome is None or not outcome.confusion.sum():
        return {}
    split, names = outcome.split, [data.class_name(index) for index in range(len(outcome.iou))]
    pixels = outcome.confusion.sum(axis=1)
    by_class = [
        [name, float(outcome.iou[index]), int(pixels[index])]
        for index, name in enumerate(names)
        if outcome.iou[index] == outcome.iou[index]  # not NaN
    ]
    shown = []
    for example in examples_of(outcome, data):
        small = example.within(_LONGEST)
        masks = {"truth": small.mask, "prediction": small.predicted}
        shown.append(
            Picture(
                small.image, small.name, {name: mask.byte().numpy() for name, mask in masks.items()}, names
            )
        )
    return {
        f"{split}/confusion": Confusion(outcome.confusion, names),
        f"{split}/iou_bars": Bars(("class", "iou"), dict(zip(names, outcome.iou.tolist(), strict=True))),
        f"{split}/iou_by_class": Rows(("class", "iou", "pixels"), by_class),
        f"{split}/iou_over_classes": Histogram(outcome.iou),
        f"{split}/predictions": Pictures(shown),
    }
