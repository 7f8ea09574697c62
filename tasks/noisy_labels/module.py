"""Training, evaluation and prediction of image classifiers whose training labels may be wrong."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from tasks.classification.module import Batch, ClassificationModule
from tasks.models import build_network, zero_last_gammas
from tasks.noisy_labels import SECOND_SET, STATE
from tasks.noisy_labels.finished import recall
from tasks.noisy_labels.learners import Learner
from tasks.noisy_labels.methods import MethodName, MethodOptions, build_learner, learner_class
from tasks.noisy_labels.noise import Labels
from tasks.noisy_labels.outcome import Outcome
from tasks.noisy_labels.samples import SampleRecord
from tasks.noisy_labels.suspects import SUSPECTS, write_suspects
from tasks.noisy_labels.training_pass import (
    ValuesOf,
    has_ratios,
    ratio_auroc_of_training_set,
    training_pass,
)
from tasks.report import Section, fraction
from tasks.weight_files import INPUTS


class NoisyLabelsModule(ClassificationModule):
    """An image classifier trained with a method that bears wrong labels.

    Only given labels are trained on. Where the true ones are known, metrics say how many wrong ones were
    memorised and how well they are found.

    Args:
        method: The method.
        loss_options: Its options.
        mixup: α of mixup on top of it; 0 for none.
        ratio_epochs: Every how many epochs the ratios of EN layers over the whole training set are asked
            whether they tell wrong labels apart, where the true ones are known; 0 for after the last epoch.
        **kwargs: Network, normalizer, optimiser and schedule, see ClassificationModule.
    """

    architecture: ClassVar[tuple[str, ...]] = (*ClassificationModule.architecture, "method")

    def __init__(
        self,
        method: MethodName = "ce",
        loss_options: MethodOptions | None = None,
        mixup: float = 0.0,
        ratio_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_smoothing=0.0, mixup=0.0, cutmix=0.0, **kwargs)
        self.save_hyperparameters()
        if ratio_epochs < 0:
            raise ValueError(f"model.ratio_epochs: expected a number ≥ 0, got {ratio_epochs}")
        self.method, self.loss_options = method, loss_options
        self.alpha, self.ratio_epochs = mixup, ratio_epochs
        self.second: nn.Module | None = None
        if learner_class(method).networks_needed == 2:
            self.second = self._another_network()
        self._build_learner(1)  # what is wrong with the options is said before the data is read
        self.second_val_metrics = self.val_metrics.clone(prefix=f"val/{SECOND_SET}_")
        self.second_test_metrics = self.test_metrics.clone(prefix=f"test/{SECOND_SET}_")
        self.outcome = Outcome()
        self.samples: SampleRecord | None = None
        self.learner: Learner | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """All that are trained."""
        return [self.network] if self.second is None else [self.network, self.second]

    def setup(self, stage: str) -> None:
        """Prepare the labels and the method, which need the size of the training set."""
        super().setup(stage)
        if self.second is not None and self.channels_last:
            self.second.to(memory_format=torch.channels_last)
        if self.second is not None and self.compile_network:
            self.second.compile()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        # Tested by `fit` without having been trained; the other subcommands keep no checkpoints.
        if stage == "test" and self.learner is None and self.trainer.checkpoint_callback:
            self.samples = recall(self.output_folder, data, self.outcome)
        if stage != "fit":
            return
        data.prepare_labels(self.output_folder)
        data.views = learner_class(self.method).views
        self.samples = SampleRecord(len(data.given_labels))
        self.learner = self._build_learner(len(data.given_labels))

    def _build_learner(self, num_samples: int) -> Learner:
        own: Any = self.hparams
        return build_learner(
            self.method,
            self.loss_options,
            networks=self.networks,
            num_classes=own["num_classes"],
            num_samples=num_samples,
            mixup=self.alpha,
            aux_weight=self.aux_weight,
        )

    def _another_network(self) -> nn.Module:
        own: Any = self.hparams
        names = ("network", "num_classes", "norm", "norm_options", "weights")
        network, classes, norm, options, weights = (own[name] for name in names)
        second = build_network(network, classes, norm, options, weights)
        if own["last_gamma_zero"] and weights is None:
            zero_last_gammas(second)
        return second

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W): the mean of both networks, or the first's."""
        if self.second is None or not learner_class(self.method).ensemble:
            return super().forward(images)
        mean: Tensor = (super().forward(images) + self.second(images)) / 2
        return mean

    # --- training

    def on_fit_start(self) -> None:
        """Move what the method remembers to the device."""
        self._learned.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Let the method look at the whole training set, where it has to."""
        self._learned.start_epoch(self.current_epoch, self.training_pass)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, by its given labels."""
        done = batch_idx / max(float(self.trainer.num_training_batches), 1.0)
        step = self._learned.step(batch, self.current_epoch + done)
        self._seen.add(step.logits_NC, step.given_N, step.indices_N, step.selected_N)
        self.log("train/loss", step.loss, prog_bar=True, sync_dist=True)
        self.log_learning_rate()
        return step.loss

    def on_train_epoch_end(self) -> None:
        """Say what the epoch did with the wrong labels, where they are known."""
        self._seen.finish()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        values = {}
        if data.true_labels is not None:
            values = self._seen.metrics(data.given_labels, data.true_labels)
            values |= self._ratio_auroc(data.given_labels, data.true_labels)
        named = {f"train/{name}": value for name, value in values.items()}
        # The same in all processes.
        self.log_dict(named, sync_dist=True)
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self.outcome.add(named, {name: v for name, v in scores.items() if name.startswith("val/")})

    def _ratio_auroc(self, given: Labels, true: Labels) -> dict[str, float]:
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs
        due = epoch == epochs or (self.ratio_epochs > 0 and epoch % self.ratio_epochs == 0)
        if not due or not has_ratios(self.network):
            return {}
        found = ratio_auroc_of_training_set(self.network, self.training_pass, given, true)
        return {"noise_auroc_ratio": found}

    def training_pass(self, values_of: ValuesOf) -> Tensor:
        """See `training_pass`."""
        return training_pass(self.trainer, self.networks, values_of)

    def on_train_end(self) -> None:
        """Write `suspects.csv`."""
        if self.output_folder is None or not self.trainer.is_global_zero:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        write_suspects(
            self.output_folder / SUSPECTS,
            data.given_labels,
            self._seen.predicted,
            self._seen.score,
            partial(data.sample_name, "train"),
            data.class_name,
            data.true_labels,
        )

    # --- evaluation: WebVision is evaluated on ImageNet as well

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update loss and accuracies of the validation split."""
        logits = self._evaluate(batch, self.second_val_metrics if dataloader_idx else self.val_metrics)
        if dataloader_idx == 0:
            loss = self.loss(logits, batch[1])
            options: Any = {"batch_size": len(batch[1]), "on_epoch": True, "sync_dist": True}
            self.log("val/loss", loss, add_dataloader_idx=False, **options)
            self.record.update(logits, *batch[1:])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the accuracies of the test split."""
        logits = self._evaluate(batch, self.second_test_metrics if dataloader_idx else self.test_metrics)
        if dataloader_idx == 0:
            self.record.update(logits, *batch[1:])

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> Tensor:
        images, labels, _ = batch
        logits: Tensor = self(images)
        metrics.update(logits, labels)
        self.log_dict(metrics, prog_bar=True, add_dataloader_idx=False)
        return logits

    # --- checkpoints and the report

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the method remembers, and what was seen of the samples."""
        super().on_save_checkpoint(checkpoint)
        if learner_class(self.method).ensemble:
            checkpoint.setdefault(INPUTS, {})["ensemble"] = True
        checkpoint[STATE] = {
            "learner": self._learned.state_dict(),
            "samples": self._seen.state_dict(),
            "outcome": self.outcome.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from it; evaluation needs the networks alone."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn != "fit":
            return
        state = checkpoint[STATE]
        self._learned.load_state_dict(state["learner"])
        self._seen.load_state_dict(state["samples"], self.trainer.strategy.root_device)
        self.outcome.load_state_dict(state["outcome"])

    def outcome_rows(self) -> dict[str, str]:
        """What the table at the end says beside the best and the tested metrics."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.true_labels is None:
            return self.outcome.rows()
        wrong = float((data.given_labels != data.true_labels).mean())
        return {"wrong labels in training": fraction(wrong), **self.outcome.rows()}

    def report_sections(self, data: Any) -> list[Section]:
        """Memorised labels, losses and suspects, then the sections of a classifier."""
        from tasks.noisy_labels.report import noise_sections

        own = noise_sections(self.output_folder, self.samples, self.outcome, data) if self.samples else []
        return [*own, *super().report_sections(data)]

    @property
    def _learned(self) -> Learner:
        assert self.learner is not None  # set by setup
        return self.learner

    @property
    def _seen(self) -> SampleRecord:
        assert self.samples is not None  # set by setup
        return self.samples
