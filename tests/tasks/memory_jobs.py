"""What the ranks of test_noisy_memory.py do; a module of its own, so that spawned processes can import it."""

from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tasks.noisy_labels.elr import EarlyLearning

SAMPLES, CLASSES, WORLD = 9, 3, 2
# Indices of each rank in each step: shards that change between epochs, batches of different sizes, and copies
# of a sample within a rank and across ranks.
STEPS = [
    ([0, 1, 2], [3, 4, 5]),
    ([6, 7], [8, 0, 1]),
    ([5, 4, 4], [2, 5]),
    ([8], [7, 6, 3, 8]),
]


def logits(step, rank):
    """Predictions of a rank in a step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return 2 * torch.randn(len(STEPS[step][rank]), CLASSES, generator=generator)


def remember(memory, rank):
    """The memory after all steps."""
    loss = EarlyLearning(SAMPLES, CLASSES, memory=memory)
    for step, indices in enumerate(STEPS):
        loss.remember(logits(step, rank), torch.tensor(indices[rank]))
    return loss.memory_MC


class Model(nn.Module):
    """A network and the loss beside it."""

    def __init__(self):
        super().__init__()
        self.network, self.loss = nn.Linear(2, CLASSES), EarlyLearning(SAMPLES, CLASSES)

    def forward(self, x):
        return self.network(x)


def wrapped(rank):
    """The memory of a loss inside DDP, which sends buffers from rank 0 in every step."""
    ddp = DistributedDataParallel(Model())
    ddp.module.loss.memory_MC.fill_(float(rank))
    ddp(torch.ones(1, 2)).sum().backward()
    return ddp.module.loss.memory_MC


def jobs():
    """The memory in both precisions, and inside DDP."""
    return {
        "float32": partial(remember, "float32"),
        "float16": partial(remember, "float16"),
        "wrapped": wrapped,
    }
