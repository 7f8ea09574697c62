"""The order of a data set's samples: which come when, to which process, and the seed of each.

A sample's augmentation depends on (seed, epoch, index) alone, with repeated augmentation on the repetition
too: not on the number of workers, the order or the rank. The samplers hand out these keys, and the dataset
seeds torch's generator from them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

Key = tuple[int, ...]
"""(epoch, index), and the repetition where images are repeated within an epoch."""


def seed_for(*key: int) -> int:
    """A 63-bit seed that depends on every integer of `key`."""
    state = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


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
