"""Seeded augmentation and loaders shared by the data modules."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tasks.errors import UserError
from tasks.images import UnreadableImage
from tasks.loader_signals import outlive_signals
from tasks.samplers import EpochSampler, EvaluationSampler, Key, seed_for
from tasks.unreadable import NoneUnreadable, UnreadableFiles, summary, temporary_log


class Examples(Protocol):
    """What a data module provides: transformed (image, target) pairs by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...


class Unreadable(Protocol):
    """What becomes of unreadable images."""

    def note(self, error: UnreadableImage) -> None:
        """Let another image take the place of one, or raise."""


class SeededDataset(Dataset[tuple[Tensor, Any, int]]):
    """Key ↦ (image, target, index), with torch's generator seeded for the key.

    Another image, with its own target and index, takes the place of an unreadable one if `unreadable` lets
    it; which one depends on (seed, index) alone.

    Args:
        examples: Source of the pairs; its random transforms draw from torch's global generator.
        seed: Seed of the run.
        unreadable: What is told of unreadable images; None lets their exceptions through.
    """

    def __init__(self, examples: Examples, seed: int, unreadable: Unreadable | None = None) -> None:
        self.examples, self.seed, self.unreadable = examples, seed, unreadable

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> tuple[Tensor, Any, int]:
        first = index = key[1]
        for attempt in itertools.count():
            try:
                with torch.random.fork_rng(devices=[]):
                    # Not torch.manual_seed, which would reseed the GPUs' generators as well.
                    torch.default_generator.manual_seed(seed_for(self.seed, *key))
                    image, target = self.examples[index]
                break
            except UnreadableImage as error:
                if self.unreadable is None:
                    raise
                self.unreadable.note(error)
                index = seed_for(self.seed, first, attempt) % len(self)
        return image, target, index


class BaseDataModule(pl.LightningDataModule, ABC):
    """Loaders of (image, target, index) batches over the four splits of a data set.

    A subclass names its classes and builds `examples(split)`; "predict" is the test split unless it says
    otherwise.

    Args:
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order and augmentation; the CLI sets it to `seed_everything`.
        prefetch_factor: Batches that each loader process prepares ahead.
        max_unreadable: Share of the training images that may be unreadable before the run stops.

    Attributes:
        repeats: Times that an image comes in a training epoch, see EpochSampler.
        first_epoch: Epoch that training begins with, of a resumed run that of its checkpoint. The trainer
            says it after loader processes were started, which ask for samples at once.
        first_batch: Batches of that epoch that each process has had already.
        unreadable_log: File that lists the unreadable images; None for one in the temporary folder. Several
            processes use that of rank 0.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        prefetch_factor: int = 4,
        max_unreadable: float = 0.001,
    ) -> None:
        super().__init__()
        if prefetch_factor < 1:
            raise ValueError(f"data.prefetch_factor: expected a positive number, got {prefetch_factor}")
        if not 0 <= max_unreadable < 1:
            raise ValueError(f"data.max_unreadable: expected a number in [0, 1), got {max_unreadable}")
        if batch_size < 1:
            raise ValueError(f"data.batch_size: expected a positive number, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers: expected a number ≥ 0, got {num_workers}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.prefetch_factor, self.max_unreadable = prefetch_factor, max_unreadable
        self.repeats = 1
        self.first_epoch = self.first_batch = 0
        self.unreadable_log: Path | None = None
        self._log_is_shared = False

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @abstractmethod
    def examples(self, split: str) -> Examples:
        """Transformed examples of "train", "val", "test" or "predict"."""

    def collate(self, split: str) -> Callable[[list[Any]], Any] | None:
        """How a split's samples become a batch; None for torch's way."""
        return None

    def sample_name(self, split: str, index: int) -> str:
        """What a table calls example `index` of a split."""
        return str(index)

    def class_name(self, index: int) -> str:
        """What a table calls a class."""
        return str(index)

    def unreadable_summary(self) -> str:
        """How many images could not be read and where they are listed; '' for none."""
        return summary(self.unreadable_log) if self.unreadable_log else ""

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the last, smaller one is dropped."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation example once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test example once."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every example to predict once."""
        return self._loader("predict")

    def _shared_log(self) -> Path:
        """The log of unreadable images that all processes write."""
        if self.unreadable_log is None:
            self.unreadable_log = temporary_log()
        if self.trainer and not self._log_is_shared:
            self.unreadable_log = self.trainer.strategy.broadcast(self.unreadable_log)
            self._log_is_shared = True
        return self.unreadable_log

    def _loader(self, split: str) -> DataLoader[Any]:
        training = split == "train"
        examples = self.examples(split)
        log = self._shared_log()  # in all processes, whatever they load
        unreadable = (
            UnreadableFiles(log, split, len(examples), self.max_unreadable)
            if training
            else NoneUnreadable(split)
        )
        if not training and self.trainer and len(examples) < self.trainer.world_size:
            raise UserError(
                f"{split}: expected an image for each of {self.trainer.world_size} processes, got "
                f"{len(examples)}"
            )
        dataset = SeededDataset(examples, self.seed, unreadable)
        sampler: EpochSampler | EvaluationSampler = (
            EpochSampler(
                len(dataset),
                seed=self.seed,
                repeats=self.repeats,
                epoch=self.first_epoch,
                skip=self.first_batch * self.batch_size,
                **self._share(),
            )
            if training
            else EvaluationSampler(len(dataset), **self._share())
        )
        return self._batches(
            dataset,
            sampler,
            collate_fn=self.collate(split),
            drop_last=training and len(sampler) >= self.batch_size,
            persistent_workers=self.num_workers > 0,
        )

    def _share(self) -> dict[str, int]:
        """Which process of how many this is, for a sampler."""
        if not self.trainer:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _batches(self, dataset: SeededDataset, sampler: Sampler[Key], **options: Any) -> DataLoader[Any]:
        """A loader with what all loaders of this data set have in common."""
        # Keywords throughout: Lightning builds the loader anew for prediction and needs their names.
        return DataLoader(
            dataset=dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            worker_init_fn=outlive_signals,
            **options,
        )
