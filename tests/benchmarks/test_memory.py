"""A process that keeps its memory takes no page faults for tensors as large as those before them."""

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import pytest

from benchmarks import measure

PAGES = 64 * 2**20 // resource.getpagesize()
"""Of a tensor: more than glibc ever keeps by itself."""


def faults(choice):
    import torch

    measure.use_allocator(choice, reserve=2**29)

    def large():
        torch.ones(16 * 2**20)

    large()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        large()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, measure.machine()["memory"]


@pytest.mark.skipif(measure.platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_where_asked_for():
    spawned = multiprocessing.get_context("spawn")
    results = {}
    for choice in ("kept", "default"):
        # A process for each choice; where one dies, asking for its result is an error.
        with ProcessPoolExecutor(1, mp_context=spawned) as process:
            results[choice] = process.submit(faults, choice).result()
    assert results["default"][1] == "system default" and results["kept"][1] == "kept by the process"
    # Huge pages, where the system has them by itself, are fewer than these.
    assert results["kept"][0] < PAGES / 100
    assert results["kept"][0] < results["default"][0]


def test_default_leaves_the_allocator_alone(monkeypatch):
    monkeypatch.setattr(measure.ctypes, "CDLL", lambda name: pytest.fail("called"))
    measure.use_allocator("default")
    monkeypatch.setattr(measure.platform, "libc_ver", lambda: ("", ""))
    measure.use_allocator("kept")
    assert measure.machine()["memory"] == "system default"
