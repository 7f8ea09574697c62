"""Training, evaluation and prediction of image classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from tasks.base import BaseModule
from tasks.classification.inputs import Inputs
from tasks.classification.mistakes import EvaluationRecord
from tasks.loggers.panels import Panel
from tasks.models import Norm, NormOptions, build_network, zero_last_gammas
from tasks.report import Section
from tasks.weight_files import INPUTS

Batch = tuple[Tensor, Tensor, Tensor]


class ClassificationModule(BaseModule):
    """An image classifier trained with cross-entropy.

    Args:
        network: "digits_resnet", "cifar_resnet18", a classification network of torchvision, or "timm/"
            and the name of one of timm's.
        num_classes: Number of classes; comes from the data.
        norm: Normalizer of the network.
        norm_options: Options of the normalizer, such as `reduction`.
        weights: Pretrained weights to start from: a name of torchvision's such as DEFAULT, or a file; null
            starts at random.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: α of mixup (Zhang et al., arXiv:1710.09412); 0 for none. Beside `cutmix`, each batch gets one
            of the two.
        cutmix: α of CutMix (Yun et al., arXiv:1905.04899); 0 for none.
        last_gamma_zero: Whether every residual block starts as the identity (ResNets); without `weights`.
        aux_weight: Weight of the auxiliary heads' losses (Inception v3, GoogLeNet).
        **kwargs: Optimiser and schedule, see BaseModule.
    """

    monitor: ClassVar[str] = "val/top1"
    monitor_mode: ClassVar[str] = "max"
    resumes_within_epoch: ClassVar[bool] = True

    def __init__(
        self,
        network: str = "resnet50",
        num_classes: int = 10,
        norm: Norm = "en",
        norm_options: NormOptions | None = None,
        weights: str | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        last_gamma_zero: bool = False,
        aux_weight: float = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        if num_classes < 2:
            raise ValueError(f"data: expected two classes or more, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing: expected a number in [0, 1), got {label_smoothing}")
        for name, value in {"mixup": mixup, "cutmix": cutmix, "aux_weight": aux_weight}.items():
            if value < 0:
                raise ValueError(f"model.{name}: expected a number ≥ 0, got {value}")
        self.network = build_network(network, num_classes, norm, norm_options, weights)
        if last_gamma_zero and weights is None:
            zero_last_gammas(self.network)
        self.mix, self.aux_weight = _mixing(mixup, cutmix, num_classes), aux_weight
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
        self.record = EvaluationRecord(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels, _ = batch
        loss = self._loss(*self.mix(images, labels))
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.log_learning_rate()
        return loss

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        outputs = self(images)
        if isinstance(outputs, Tensor):
            loss: Tensor = self.loss(outputs, targets)
            return loss
        # A named tuple of torchvision: the logits, then those of the auxiliary heads.
        losses = torch.stack([self.loss(logits, targets) for logits in outputs if logits is not None])
        return losses[0] + self.aux_weight * losses[1:].sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update loss and accuracies of the validation split."""
        images, labels, indices = batch
        logits = self(images)
        self.record.update(logits, labels, indices)
        loss = self.loss(logits, labels)
        self.log("val/loss", loss, batch_size=len(labels), on_epoch=True, sync_dist=True)
        self.val_metrics.update(logits, labels)
        self.log_dict(self.val_metrics, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the accuracies of the test split."""
        images, labels, indices = batch
        logits = self(images)
        self.record.update(logits, labels, indices)
        self.test_metrics.update(logits, labels)
        self.log_dict(self.test_metrics)

    def on_validation_epoch_start(self) -> None:
        """Start the record of what the report shows."""
        self.record.start("val")

    def on_test_epoch_start(self) -> None:
        """Start it anew."""
        self.record.start("test")

    def on_validation_epoch_end(self) -> None:
        """Gather the record of all processes."""
        self.record.finish()

    def on_test_epoch_end(self) -> None:
        """Gather it again."""
        self.record.finish()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the inputs are, so that the checkpoint can be used without the data set."""
        super().on_save_checkpoint(checkpoint)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            checkpoint[INPUTS] = asdict(Inputs.of(data))

    def report_sections(self, data: Any) -> list[Section]:
        """Some of the training data, confusion, accuracy by class, and the mistakes as pictures."""
        from tasks.classification.report import classification_sections, training_pictures

        return [training_pictures(data), *classification_sections(self.record.outcome, data)]

    def panels(self, data: Any) -> dict[str, Panel]:
        """The same as panels of W&B."""
        from tasks.classification.panels import classification_panels

        return classification_panels(self.record.outcome, data)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Most probable class of each image; a true class below 0 means unknown."""
        images, labels, indices = batch
        probability, predicted = torch.softmax(self(images).float(), dim=1).max(dim=1)
        return {"index": indices, "predicted": predicted, "probability": probability, "true": labels}


Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _mixing(mixup: float, cutmix: float, num_classes: int) -> Mix:
    """(images, labels) ↦ the mixed images and class probabilities; without mixing, what came."""
    mixes = [
        kind(alpha=alpha, num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha > 0
    ]
    mix: Mix = v2.RandomChoice(mixes or [v2.Identity()])
    return mix
