"""Training, evaluation and prediction of image classifiers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from tasks.base import BaseModule
from tasks.models import Norm, NormOptions, build_network

Batch = tuple[Tensor, Tensor, Tensor]


class ClassificationModule(BaseModule):
    """An image classifier trained with cross-entropy.

    Args:
        network: "digits_resnet" or the name of a torchvision classification network.
        num_classes: Number of classes; comes from the data.
        norm: Normalizer of the network.
        norm_options: Options of the normalizer, such as `reduction`.
        label_smoothing: Share of the target that is spread over all classes.
        **kwargs: Optimiser and schedule, see BaseModule.
    """

    monitor: ClassVar[str] = "val/top1"
    monitor_mode: ClassVar[str] = "max"

    def __init__(
        self,
        network: str = "resnet50",
        num_classes: int = 10,
        norm: Norm = "en",
        norm_options: NormOptions | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing: expected a number in [0, 1), got {label_smoothing}")
        self.network = build_network(network, num_classes, norm, norm_options)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        metrics = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
                for k in (1, 5)
            },
            # Grouping is decided on the first batch, where top-1 and top-5 can agree by chance.
            compute_groups=False,
        )
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels, _ = batch
        loss: Tensor = self.loss(self(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log_learning_rate()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update loss and accuracies of the validation split."""
        images, labels, _ = batch
        logits = self(images)
        loss = self.loss(logits, labels)
        self.log("val/loss", loss, batch_size=len(labels), on_epoch=True, sync_dist=True)
        self.val_metrics.update(logits, labels)
        self.log_dict(self.val_metrics, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the accuracies of the test split."""
        images, labels, _ = batch
        self.test_metrics.update(self(images), labels)
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Most probable class of each image; a true class below 0 means unknown."""
        images, labels, indices = batch
        probability, predicted = torch.softmax(self(images).float(), dim=1).max(dim=1)
        return {"index": indices, "predicted": predicted, "probability": probability, "true": labels}
