"""What the ranks of test_sync_benchmark.py do; a module of its own, for spawned processes to import."""

from functools import partial

import torch

from benchmarks import sync

CHANNELS = 6


def counted(kind, rank):
    """Bytes of the messages of a layer."""
    x = torch.randn(2, CHANNELS, 3, 3, requires_grad=True)
    return sync.count(sync.build(kind, CHANNELS), x)


def jobs():
    """One count for each kind of layer."""
    return {kind: partial(counted, kind) for kind in sync.KINDS}
