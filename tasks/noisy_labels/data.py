"""What training with noisy labels asks of the data: given and true labels, views, the training set in order.

The given label travels with the image. The true one, where it is known, is in `true_labels` alone, which the
metrics read and no loader does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tasks.classification.cifar import CIFAR10DataModule, CIFAR100DataModule
from tasks.classification.data import ClassificationDataModule
from tasks.classification.digits import DigitsDataModule
from tasks.classification.fashion import FashionDataModule
from tasks.classification.folders import ImageFolderDataModule
from tasks.classification.imagenet import ImageNetDataModule
from tasks.data import Examples, SeededDataset
from tasks.errors import UserError
from tasks.noisy_labels.noise import Labels, corrupt, transition_matrix
from tasks.noisy_labels.noise_file import NOISY_LABELS, read_labels, write_labels
from tasks.samplers import EvaluationSampler
from tasks.unreadable import UnreadableFiles


@dataclass
class Noise:
    """Synthetic noise on the training labels, see `tasks.noisy_labels.noise`.

    Attributes:
        kind: "none"; "symmetric" noise never keeps the label, "symmetric_inclusive" draws from all classes;
            "pair" takes the next class; "asymmetric" follows the mapping.
        rate: Probability of the noise, in [0, 1].
        seed: Seed of the draws, apart from the seed of the run.
        mapping: Class → class of "asymmetric" noise; CIFAR-10's by default, where there are 10 classes.
    """

    kind: Literal["none", "symmetric", "symmetric_inclusive", "pair", "asymmetric"] = "none"
    rate: float = 0.0
    seed: int = 0
    mapping: dict[int, int] | None = None


class Relabelled:
    """Examples with other labels, and with one or several views of each image.

    Args:
        examples: Images, whose own labels are thrown away.
        labels: (N) labels in their place.
        views: Number of views; several are stacked in front, (V, 3, H, W).
    """

    def __init__(self, examples: Examples, labels: Labels, views: int = 1) -> None:
        self.examples, self.labels, self.views = examples, labels, views

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        images = [self.examples[index][0] for _ in range(self.views)]
        return images[0] if self.views == 1 else torch.stack(images), int(self.labels[index])


class NoisyLabelsDataModule(ClassificationDataModule):
    """A classification data set whose training labels may be wrong.

    Laid before one of the data modules of image classification, in a class that derives from both.

    Attributes:
        views: Views of each training image, under its own augmentation each.
        given_labels: (N) labels to train on; set by `prepare_labels`.
        true_labels: (N) true labels, for metrics alone; None where nobody knows them.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.views = 1
        self.given_labels: Labels | None = None
        self.true_labels: Labels | None = None

    def prepare_labels(self, folder: Path | None) -> None:
        """Set the labels; called in all processes, with the folder of the run in the first."""
        self.given_labels = self.labels("train")

    def examples(self, split: str) -> Examples:
        """The training split with the given labels, the others as they are."""
        return self._relabelled(True, self.views) if split == "train" else super().examples(split)

    def training_pass(self) -> DataLoader[Any]:
        """Every training image once over all processes, under the evaluation view, with its given label."""
        examples = self._relabelled(False, 1)
        unreadable = UnreadableFiles(self._shared_log(), "train", len(examples), self.max_unreadable)
        dataset = SeededDataset(examples, self.seed, unreadable)
        return self._batches(dataset, EvaluationSampler(len(examples), **self._share()))

    def _relabelled(self, training: bool, views: int) -> Examples:
        if self.given_labels is None:
            raise RuntimeError("prepare_labels has to be called before the training images are loaded")
        return Relabelled(self.view("train", training), self.given_labels, views)


class SyntheticNoise(NoisyLabelsDataModule):
    """Noise on the training labels of a data set whose labels count as true.

    The labels are drawn once and written to `noisy_labels.csv` in the folder of the run, which a resumed run
    reads back.

    Args:
        noise: The noise.
        **kwargs: Those of the data set.
    """

    def __init__(self, noise: Noise | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise = noise or Noise()
        if self.noise.kind == "none" and self.noise.rate:
            raise UserError(f"data.noise.rate: expected 0 with kind none, got {self.noise.rate}")
        if self.noise.kind != "none":
            try:
                transition_matrix(self.noise.kind, self.noise.rate, self.num_classes, self.noise.mapping)
            except ValueError as error:
                raise UserError(f"data.noise.{error}") from error
        if self.noise.seed < 0:
            raise UserError(f"data.noise.seed: expected a number ≥ 0, got {self.noise.seed}")

    def prepare_labels(self, folder: Path | None) -> None:
        """Draw the noisy labels, or read those that the run was started with."""
        drawn = self._draw(folder) if self.trainer is None or self.trainer.is_global_zero else None
        # One process decides, for all: the file of the run may be seen by one machine alone.
        pair: Any = self.trainer.strategy.broadcast(drawn) if self.trainer else drawn
        if isinstance(pair, UserError):
            raise pair
        self.given_labels, self.true_labels = pair

    def _draw(self, folder: Path | None) -> tuple[Labels, Labels | None] | UserError:
        true, noise = self.labels("train"), self.noise
        if noise.kind == "none":
            return true, None
        names = [self.name_of("train", index) for index in range(len(true))]
        path = folder / NOISY_LABELS if folder else None
        if path and path.is_file():
            try:
                return read_labels(path, names, self.num_classes)
            except UserError as error:
                return error  # raised in all processes: the others would wait for ever
        given = corrupt(true, self.num_classes, noise.kind, noise.rate, noise.seed, noise.mapping)
        if path:
            write_labels(path, names, given, true)
        wrong = np.mean(given != true)
        print(
            f"noise: {noise.kind} {noise.rate:g}: {wrong:.4f} of {len(true):,} labels are wrong", flush=True
        )
        return given, true


class NoisyDigits(SyntheticNoise, DigitsDataModule):
    """The embedded digits with noisy labels, see DigitsDataModule.

    Args:
        train_samples: How many of the training digits there are, the same in every run; None for all.
        augment: Whether training digits are rotated, shifted, scaled and sheared.
        **kwargs: Those of DigitsDataModule, and the noise.
    """

    def __init__(self, train_samples: int | None = None, augment: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if train_samples is not None and train_samples < 1:
            raise ValueError(f"data.train_samples: expected a positive number, got {train_samples}")
        self.train_samples, self.augment = train_samples, augment

    def setup(self, stage: str) -> None:
        """Read and split the digits, and draw those to train on."""
        if self.rows:
            return
        super().setup(stage)
        rows = self.rows["train"]
        if self.train_samples and self.train_samples < len(rows):
            self.rows["train"] = np.sort(np.random.default_rng(0).permutation(rows)[: self.train_samples])

    def view(self, split: str, training: bool) -> Examples:
        """Digits of one split."""
        return super().view(split, training and self.augment)


class NoisyCIFAR10(SyntheticNoise, CIFAR10DataModule):
    """CIFAR-10 with noisy labels, see CIFAR10DataModule."""


class NoisyCIFAR100(SyntheticNoise, CIFAR100DataModule):
    """CIFAR-100 with noisy labels, see CIFAR100DataModule."""


class NoisyFashion(SyntheticNoise, FashionDataModule):
    """Fashion-MNIST with noisy labels, see FashionDataModule."""


class NoisyImageNet(SyntheticNoise, ImageNetDataModule):
    """ImageNet with noisy labels, see ImageNetDataModule."""


class NoisyImageFolder(SyntheticNoise, ImageFolderDataModule):
    """Folders of images with noisy labels, see ImageFolderDataModule."""
