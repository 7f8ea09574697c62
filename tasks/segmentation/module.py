"""Training, evaluation and prediction of segmentation networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn

from tasks.base import BaseModule
from tasks.loggers.panels import Panel
from tasks.models import Norm, NormOptions
from tasks.optim import parameter_groups
from tasks.report import Section
from tasks.segmentation.inference import Inference
from tasks.segmentation.losses import SegmentationLoss
from tasks.segmentation.metrics import SegmentationScores
from tasks.segmentation.networks import Network, Outputs, build_segmenter
from tasks.segmentation.record import EvaluationRecord

Batch = tuple[Tensor, Tensor, Tensor]
Evaluation = tuple[list[Tensor], list[Tensor], Tensor]
"""Images (3, H, W) and masks (H, W), each in its own size, and indices."""

_WHOLE = Inference()


class SegmentationModule(BaseModule):
    """A segmentation network trained with cross-entropy and its variants.

    Args:
        network: Decoder, with the output stride that goes with it: 8 for DeepLab and PSP.
        encoder: Name of an encoder of segmentation_models_pytorch; "digits_unet" has its own.
        num_classes: Number of classes; comes from the data.
        norm: Normalizer of the network.
        norm_options: Options of the normalizer, such as `reduction`.
        encoder_weights: Weights of the classification network of the encoder's name: a name of torchvision's
            or a file, such as a checkpoint of tasks.classification; null starts at random.
        aux_weight: Weight of the loss of an auxiliary head on stage 3; 0 for no such head.
        class_weights: Weight of each class in the loss; null weighs all alike.
        ohem: Online hard example mining: pixels count whose true class has a probability below this; null
            counts all.
        ohem_min_kept: Pixels an image that count at least with `ohem`.
        dice: Weight of the Dice loss beside the cross-entropy.
        head_lr: Factor on the learning rate of everything outside the encoder.
        inference: How images are evaluated: whole or by sliding windows, at which scales, mirrored or not.
        **kwargs: Optimiser and schedule, see BaseModule.
    """

    scores: SegmentationScores
    """Of the epoch that is evaluated, by the protocol of its data set."""
    resumes_within_epoch: ClassVar[bool] = True
    monitor: ClassVar[str] = "val/miou"
    monitor_mode: ClassVar[str] = "max"
    architecture: ClassVar[tuple[str, ...]] = ("network", "encoder", "num_classes", "norm", "norm_options")

    def __init__(
        self,
        network: Network = "deeplabv3",
        encoder: str = "resnet50",
        num_classes: int = 19,
        norm: Norm = "en",
        norm_options: NormOptions | None = None,
        encoder_weights: str | None = None,
        aux_weight: float = 0.4,
        class_weights: list[float] | None = None,
        ohem: float | None = None,
        ohem_min_kept: int = 100_000,
        dice: float = 0.0,
        head_lr: float = 1.0,
        inference: Inference = _WHOLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.hparams["inference"] = asdict(inference)  # plain values, as all of them
        if aux_weight < 0:
            raise ValueError(f"model.aux_weight: expected a number ≥ 0, got {aux_weight}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"model.class_weights: expected {num_classes} weights, got {len(class_weights)}")
        if head_lr <= 0:
            raise ValueError(f"model.head_lr: expected a positive number, got {head_lr}")
        self.network = build_segmenter(
            network,
            encoder,
            num_classes,
            norm,
            norm_options,
            aux=aux_weight > 0,
            encoder_weights=encoder_weights,
        )
        self.loss = SegmentationLoss(class_weights, ohem, ohem_min_kept, dice)
        self.aux_weight, self.head_lr, self.inference = aux_weight, head_lr, inference
        self.record = EvaluationRecord()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Those of the encoder, then those of the rest of the network with their own learning rate."""
        if self.head_lr == 1:
            return super().parameter_groups(lr)
        rest = nn.ModuleList(part for name, part in self.network.named_children() if name != "encoder")
        encoder = parameter_groups(self.network.get_submodule("encoder"), lr, self.decay, self.mixture_lr)
        heads = parameter_groups(rest, self.head_lr * lr, self.decay, self.mixture_lr)
        return [*encoder, *({**group, "name": f"head {group['name']}"} for group in heads)]

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Logits (N, classes, H, W) of images (N, 3, H, W); in training of the auxiliary head as well."""
        outputs: Tensor | Outputs = self.network(images)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch of crops."""
        images, masks, _ = batch
        outputs = self(images)
        loss: Tensor
        if isinstance(outputs, Outputs):
            loss = self.loss(outputs.logits, masks) + self.aux_weight * self.loss(outputs.aux, masks)
        else:
            loss = self.loss(outputs, masks)
        self.log("train/loss", loss, prog_bar=True)
        self.log_learning_rate()
        return loss

    # --- evaluation

    def validation_step(self, batch: Evaluation, batch_idx: int) -> None:
        """Update loss and scores of the validation split."""
        losses = [
            self.loss(logits[None].to(mask.device), mask[None])
            for logits, mask in self._evaluate(batch, "val")
        ]
        loss = torch.stack(losses).mean()
        self.log("val/loss", loss, batch_size=len(losses), on_epoch=True, sync_dist=True)

    def test_step(self, batch: Evaluation, batch_idx: int) -> None:
        """Update the scores of the test split."""
        for _ in self._evaluate(batch, "test"):
            continue

    def _evaluate(self, batch: Evaluation, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Count the images of a batch; yields logits (classes, H, W) and mask (H, W) of each."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        images, masks, indices = batch
        found = self.inference(self.network, images)
        for logits, mask, index in zip(found, masks, indices.tolist(), strict=True):
            predicted = logits.argmax(dim=0).to(mask.device)
            # Reading them takes as long as reading the mask: not after every epoch.
            instances = data.instance_ids(split, index, mask.shape) if split == "test" else None
            self.scores.update(predicted, mask, *([] if instances is None else [instances]))
            self.record.update(index, predicted)
            yield logits, mask

    def on_validation_epoch_start(self) -> None:
        """Start to count."""
        self._start("val")

    def on_test_epoch_start(self) -> None:
        """Start anew."""
        self._start("test")

    def on_validation_epoch_end(self) -> None:
        """Log the scores over all processes."""
        self._finish(("miou", "pixel_acc"))

    def on_test_epoch_end(self) -> None:
        """Log them, and show them by class."""
        self._finish(("miou", "pixel_acc", "mean_of_both", "iiou"))
        if self.trainer.is_global_zero and self.record.outcome:
            from tasks.segmentation.results import show_results

            data = self.trainer.datamodule  # type: ignore[attr-defined]
            show_results(self.record.outcome, data, self.output_folder)

    def _start(self, split: Literal["val", "test"]) -> None:
        # Not in setup: a run in low precision converts what the module holds then, and sums are float64.
        self.scores = self.trainer.datamodule.scores().to(self.device)  # type: ignore[attr-defined]
        size = len(self.trainer.datamodule.examples(split))  # type: ignore[attr-defined]
        self.record.start(split, size)

    def _finish(self, names: tuple[str, ...]) -> None:
        split, found = self.record.split, self.scores.compute()
        self.record.finish(found)
        for name in names:
            if name in found and (name == "miou" or found[name].isfinite()):
                self.log(f"{split}/{name}", found[name].float(), prog_bar=name == "miou", sync_dist=True)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        by_class = {f"{split}_iou/{data.class_name(i)}": v for i, v in enumerate(found["iou"].tolist())}
        for logger in self.loggers:
            # The other logger is a table, which many classes would make wide.
            if isinstance(logger, WandbLogger):
                logger.log_metrics(by_class, step=self.global_step)

    def report_sections(self, data: Any) -> list[Section]:
        """Predictions as pictures, IoU by class, confusions."""
        from tasks.segmentation.report import segmentation_sections

        return segmentation_sections(self.record.outcome, data)

    def panels(self, data: Any) -> dict[str, Panel]:
        """The same as panels of W&B."""
        from tasks.segmentation.panels import segmentation_panels

        return segmentation_panels(self.record.outcome, data)

    # --- prediction

    def predict_step(self, batch: Evaluation, batch_idx: int) -> dict[str, Any]:
        """Most probable class of each pixel of each image."""
        images, _, indices = batch
        found = self.inference(self.network, images)
        return {"index": indices, "predicted": [logits.argmax(dim=0) for logits in found]}

    def prediction_writer(self, folder: Path) -> Callback:
        """Overlays and submission files in `predictions`."""
        from tasks.segmentation.results import PredictionFiles

        return PredictionFiles(folder / "predictions")
