"""Samplers, seeded augmentation and loaders shared by the data modules.

A sample's augmentation depends on (seed, epoch, index) alone: not on the number of workers, the order or the
rank. The samplers hand out (epoch, index) pairs, and the dataset seeds torch's generator from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class Examples(Protocol):
    """What a data module provides: transformed (image, target) pairs by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...


def seed_for(*key: int) -> int:
    """A 63-bit seed that depends on every integer of `key`."""
    state = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class SeededDataset(Dataset[tuple[Tensor, Any, int]]):
    """(epoch, index) ↦ (image, target, index), with torch's generator seeded for the pair.

    Args:
        examples: Source of the pairs; its random transforms draw from torch's global generator.
        seed: Seed of the run.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any, int]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, epoch, index))
            image, target = self.examples[index]
        return image, target, index


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs in an order that (seed, epoch) fixes, shared out over the ranks.

    Args:
        size: Number of examples.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        # Every rank takes the same number of steps, or the others would wait for ever: up to world_size − 1
        # examples sit out an epoch, other ones each time.
        return self.size // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)[: len(self) * self.world_size]
        return ((self.epoch, index) for index in order[self.rank :: self.world_size].tolist())


class EvaluationSampler(Sampler[tuple[int, int]]):
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

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, index) for index in self.indices)


class BaseDataModule(pl.LightningDataModule, ABC):
    """Loaders of (image, target, index) batches over the four splits of a data set.

    A subclass names its classes and builds `examples(split)`; "predict" is the test split unless it says
    otherwise.

    Args:
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order and augmentation; the CLI sets it to `seed_everything`.
    """

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size: expected a positive number, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers: expected a number ≥ 0, got {num_workers}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @abstractmethod
    def examples(self, split: str) -> Examples:
        """Transformed examples of "train", "val", "test" or "predict"."""

    def sample_name(self, split: str, index: int) -> str:
        """What a table calls example `index` of a split."""
        return str(index)

    def class_name(self, index: int) -> str:
        """What a table calls a class."""
        return str(index)

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

    def _loader(self, split: str) -> DataLoader[Any]:
        dataset = SeededDataset(self.examples(split), self.seed)
        share = (
            {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}
        )
        training = split == "train"
        sampler: EpochSampler | EvaluationSampler = (
            EpochSampler(len(dataset), seed=self.seed, **share)
            if training
            else EvaluationSampler(len(dataset), **share)
        )
        # Keywords throughout: Lightning builds the loader anew for prediction and needs their names.
        return DataLoader(
            dataset=dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=training and len(sampler) >= self.batch_size,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
