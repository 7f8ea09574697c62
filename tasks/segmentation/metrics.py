"""Scores of segmentation by the protocols of Cityscapes and ADE20K, exact over any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from tasks.segmentation.labels import CITYSCAPES, IGNORE


class SegmentationScores(Metric):
    """Scores from one confusion matrix over the labelled pixels of a whole split.

    IoU of a class is tp / (tp + fp + fn); NaN, and left out of the mean, where it is neither in the masks nor
    predicted, as in the evaluation of cityscapesScripts. (ADE20K's own formula counts such a class as 0; its
    validation split has them all.)

    Args:
        num_classes: Number of classes.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, predicted: Tensor, mask: Tensor) -> None:
        """Count predicted classes and train ids, of the same shape."""
        if predicted.shape != mask.shape:
            raise ValueError(
                f"predicted: expected the shape {tuple(mask.shape)}, got {tuple(predicted.shape)}"
            )
        is_labelled = mask != IGNORE
        cells = mask[is_labelled].long() * self.num_classes + predicted[is_labelled]
        counts = torch.bincount(cells, minlength=self.num_classes**2)
        self.confusion += counts.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Scores in float64, NaN without labelled pixels, over all processes.

        Returns:
            "miou"; "pixel_acc", the share of right pixels; "iou" (classes,); "confusion" (classes, classes),
            a row a true class.
        """
        hits = self.confusion.diagonal()
        iou = hits.double() / (self.confusion.sum(0) + self.confusion.sum(1) - hits)
        miou, pixel_acc = iou.nanmean(), hits.sum().double() / self.confusion.sum()
        return {"miou": miou, "pixel_acc": pixel_acc, "iou": iou, "confusion": self.confusion.clone()}


class ADE20KScores(SegmentationScores):
    """With the benchmark's own score, the mean of mIoU and pixel accuracy."""

    def compute(self) -> dict[str, Tensor]:
        """Also "mean_of_both"."""
        found = super().compute()
        return {**found, "mean_of_both": (found["miou"] + found["pixel_acc"]) / 2}


# Mean pixels of an object, from `evalPixelLevelSemanticLabeling.py` of cityscapesScripts.
_MEAN_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


class CityscapesScores(SegmentationScores):
    """With iIoU: tp and fn of objects weighted by the mean size of their class over their own.

    iIoU is Σ w·tp / (Σ w·tp + fp + Σ w·fn) for the eight classes of objects, as in cityscapesScripts; it
    needs the instance ids of every image.
    """

    weighted_tp: Tensor
    weighted_fn: Tensor

    def __init__(self) -> None:
        super().__init__(len(CITYSCAPES))
        for name in ("weighted_tp", "weighted_fn"):
            zeros = torch.zeros(self.num_classes, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.mean_sizes = {
            CITYSCAPES.raw_ids[i]: (i, _MEAN_SIZES[name])
            for i, name in enumerate(CITYSCAPES.names)
            if name in _MEAN_SIZES
        }

    def update(self, predicted: Tensor, mask: Tensor, instances: Tensor | None = None) -> None:
        """Count one image (H, W), and its objects by the ids of `*_instanceIds.png`: 1000 · id + number."""
        super().update(predicted, mask)
        if instances is None:
            return
        objects, which, sizes = torch.unique(
            instances.to(mask.device), return_inverse=True, return_counts=True
        )
        for row, (number, size) in enumerate(zip(objects.tolist(), sizes.tolist(), strict=True)):
            # Ids up to 1000 are stuff, and groups of objects that nobody told apart.
            if number <= 1000 or number // 1000 not in self.mean_sizes:
                continue
            label, mean_size = self.mean_sizes[number // 1000]
            hits = int((predicted[which == row] == label).sum())
            self.weighted_tp[label] += hits * mean_size / size
            self.weighted_fn[label] += (size - hits) * mean_size / size

    def compute(self) -> dict[str, Tensor]:
        """Also "iiou", NaN where no objects were given, and "class_iiou" (classes,), NaN for stuff."""
        false_positives = self.confusion.sum(0) - self.confusion.diagonal()
        iiou = self.weighted_tp / (self.weighted_tp + self.weighted_fn + false_positives)
        has_objects = torch.zeros_like(iiou, dtype=torch.bool)
        has_objects[[label for label, _ in self.mean_sizes.values()]] = True
        iiou = iiou.where(has_objects, torch.nan)
        has_any = (self.weighted_tp + self.weighted_fn).sum() > 0
        return {
            **super().compute(),
            "iiou": iiou.nanmean().where(has_any, torch.nan),
            "class_iiou": iiou,
        }
