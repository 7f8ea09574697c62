"""Running functions on several gloo ranks of this machine, and what they returned on each."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Jobs = Callable[[], Mapping[str, Callable[[int], Any]]]


class Results:
    """What each job returned, rank by rank; a job that failed fails the test that asks for it."""

    def __init__(self, by_rank: list[dict[str, Any]]) -> None:
        self.by_rank = by_rank

    def __call__(self, name: str) -> list[Any]:
        own = [results[name] for results in self.by_rank]
        errors = [f"rank {rank}: {r}" for rank, r in enumerate(own) if isinstance(r, str)]
        assert not errors, "\n".join(errors)
        return own


def run_on_ranks(jobs: Jobs, folder: Path, world: int = 2) -> Results:
    """Call each of ``jobs()`` with its rank, on every one of ``world`` ranks, all in one launch.

    ``jobs`` has to stand at the top of an importable module; the results must be picklable.
    """
    mp.spawn(_rank, (world, str(folder), jobs), nprocs=world, join=True)
    return Results([torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)])


def _rank(rank: int, world: int, folder: str, jobs: Jobs) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    results: dict[str, Any] = {}
    for number, (name, job) in enumerate(jobs().items()):
        # A group for each job: one that fails on one rank alone cannot put the next ones out of step.
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{number}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=15),  # a call that never comes must fail, not hang
        )
        torch.manual_seed(0)
        try:
            results[name] = job(rank)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        finally:
            dist.destroy_process_group()
    torch.save(results, f"{folder}/{rank}.pt")
