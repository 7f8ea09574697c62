"""What an evaluation and a prediction leave behind: IoU by class, comparisons and predictions as pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from torch.nn import functional as F

from tasks.ranks import gathered
from tasks.report import fraction, print_table
from tasks.segmentation.data import SegmentationDataModule
from tasks.segmentation.labels import IGNORE
from tasks.segmentation.overlays import WRITTEN, legend, overlay, to_picture, write_prediction
from tasks.segmentation.record import Outcome
from tasks.tables import write_table

CLASSES, COMPARISONS, LEGEND = "iou_by_class.csv", "comparisons", "legend.png"
_PRINTED = 40
"""Classes up to which a table of all of them is printed."""
_FEWEST = 10
_GAP, _SHORTEST = 4, 240


class Example(NamedTuple):
    """An evaluated image: its name, bytes (3, H, W), true and predicted classes (H, W)."""

    name: str
    image: Tensor
    mask: Tensor
    predicted: Tensor

    def within(self, longest: int) -> Example:
        """The same, its longer side at most `longest` pixels."""
        height, width = self.mask.shape
        shrink = longest / max(height, width)
        if shrink >= 1:
            return self
        size = [max(round(shrink * side), 1) for side in (height, width)]
        image = F.interpolate(self.image[None].float(), size, mode="bilinear", antialias=True)
        masks = (F.interpolate(m[None, None], size)[0, 0] for m in (self.mask, self.predicted))
        return Example(self.name, image[0].round_().clamp_(0, 255).to(torch.uint8), *masks)

    def comparison(self, data: SegmentationDataModule) -> Tensor:
        """Image, truth and prediction side by side, bytes (3, H, 3·W + gaps); small ones are enlarged."""
        gap = torch.full((3, len(self.mask), _GAP), 255, dtype=torch.uint8)
        # What is not labelled is not judged: the prediction shows it as the truth does.
        judged = self.predicted.where(self.mask != IGNORE, IGNORE)
        truth, found = (overlay(self.image, mask, data.labels) for mask in (self.mask, judged))
        strip = torch.cat([self.image, gap, truth, gap, found], dim=2)
        enlarged = max(_SHORTEST // max(self.mask.shape), 1)
        return strip.repeat_interleave(enlarged, dim=1).repeat_interleave(enlarged, dim=2)


def examples_of(outcome: Outcome, data: SegmentationDataModule) -> Iterator[Example]:
    """The images whose predictions were kept, read once more."""
    examples = data.examples(outcome.split)
    for index, predicted in outcome.predicted.items():
        image, mask = examples[index]
        yield Example(data.sample_name(outcome.split, index), image, mask, torch.from_numpy(predicted))


def show_results(outcome: Outcome, data: SegmentationDataModule, folder: Path | None) -> None:
    """Print IoU by class; into `folder` go all of them as a table, and pictures with their legend."""
    names = [data.class_name(index) for index in range(data.num_classes)]
    known = np.flatnonzero(~np.isnan(outcome.iou))
    title, shown = "IoU by class", known
    if len(known) > _PRINTED:
        title, shown = (
            f"the {_FEWEST} lowest IoU of {len(known)} classes",
            known[np.argsort(outcome.iou[known])],
        )
        shown = shown[:_FEWEST]
    rows = {names[index]: fraction(outcome.iou[index]) for index in shown.tolist()}
    if folder is not None:
        pixels = outcome.confusion.sum(axis=1)
        table = ((name, f"{outcome.iou[i]:.6f}", pixels[i]) for i, name in enumerate(names))
        write_table(folder / CLASSES, ("class", "iou", "pixels"), table)
        pictures = folder / COMPARISONS
        for example in examples_of(outcome, data):
            path = pictures / f"{example.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_picture(example.comparison(data)).save(path)
        legend(data.labels).save(pictures / LEGEND)
        rows["image, truth, prediction"] = str(pictures)
    print_table(f"{outcome.split}: {title}", rows)


class PredictionFiles(BasePredictionWriter):
    """Write overlays and submission files as the predictions come in, none of which is kept.

    Args:
        folder: Folder of both.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.count = folder, 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the predictions from before: those of two sets of images could not be told apart."""
        if trainer.is_global_zero:
            for name in WRITTEN:
                shutil.rmtree(self.folder / name, ignore_errors=True)
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        images, predicted = batch[0], prediction["predicted"]
        for image, index, classes in zip(images, prediction["index"].tolist(), predicted, strict=True):
            name = data.sample_name("predict", index)
            write_prediction(self.folder, name, data.as_bytes(image), classes, data.labels)
            self.count += 1

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the legend, and say where everything is."""
        count = sum(gathered([self.count]))
        if trainer.is_global_zero and count:
            data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
            legend(data.labels).save(self.folder / LEGEND)
            print(f"{count} predictions written to {self.folder}")
