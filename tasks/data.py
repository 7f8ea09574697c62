"""Samplers, seeded augmentation and loaders shared by the data modules.

A sample's augmentation depends on (seed, epoch, index) alone, with repeated augmentation on the repetition
too: not on the number of workers, the order or the rank. The samplers hand out these keys, and the dataset
seeds torch's generator from them.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tasks.images import UnreadableImage
from tasks.unreadable import NoneUnreadable, UnreadableFiles, summary, temporary_log

Key = tuple[int, ...]
"""(epoch, index), and the repetition where images are repeated within an epoch."""


class Examples(Protocol):
    """What a data module provides: transformed (image, target) pairs by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...


def seed_for(*key: int) -> int:
    """A 63-bit seed that depends on every integer of `key`."""
    state = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


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


class EpochSampler(Sampler[Key]):
    """Keys in an order that (seed, epoch) fixes, shared out over the ranks.

    With repeated augmentation (Hoffer et al. 2020, "Augment your batch") an epoch is as long as ever: it
    takes 1/repeats of the examples, each `repeats` times in a row, so that the copies go to one step. As
    torchvision's RASampler, but for its rounding to 256.

    Args:
        size: Number of examples.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
        repeats: Times that an example comes in an epoch; its keys then have the repetition.
        epoch: The epoch to begin with.
        skip: Keys of that epoch that this process has had already.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        epoch: int = 0,
        skip: int = 0,
    ) -> None:
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.repeats, self.epoch = repeats, epoch
        self._begun, self._skip = epoch, skip

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        # Every rank takes the same number of steps, or the others would wait for ever: up to world_size − 1
        # examples sit out an epoch, other ones each time.
        return self.size // self.world_size

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        had = self._skip if self.epoch == self._begun else 0
        places = range(self.rank + had * self.world_size, len(self) * self.world_size, self.world_size)
        if self.repeats == 1:
            return ((self.epoch, index) for index in order[places.start : places.stop : places.step].tolist())
        taken = order[torch.tensor(places) // self.repeats].tolist()
        pairs = zip(taken, places, strict=True)
        return ((self.epoch, index, place % self.repeats) for index, place in pairs)


class EvaluationSampler(Sampler[Key]):
    """Every index once over all ranks, without padding, always as of epoch 0.

    Args:
        size: Number of examples.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return ((0, index) for index in self.indices)


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
        dataset = SeededDataset(examples, self.seed, unreadable)
        share = (
            {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}
        )
        sampler: EpochSampler | EvaluationSampler = (
            EpochSampler(
                len(dataset),
                seed=self.seed,
                repeats=self.repeats,
                epoch=self.first_epoch,
                skip=self.first_batch * self.batch_size,
                **share,
            )
            if training
            else EvaluationSampler(len(dataset), **share)
        )
        # Keywords throughout: Lightning builds the loader anew for prediction and needs their names.
        return DataLoader(
            dataset=dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate(split),
            drop_last=training and len(sampler) >= self.batch_size,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
        )
