"""Measuring: interleaved times, peak and saved bytes, the process's memory, and what machine it was."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
Runs = Mapping[str, Callable[[], Any]]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_SYSTEM, _KEPT = "system default", "kept by the process"
_memory = _SYSTEM


def use_allocator(choice: str, reserve: int = 2**31) -> None:
    """With "kept", let the process keep the memory that tensors leave, where its C library is glibc's.

    By default glibc maps large tensors anew at each call and hands freed memory back: the page faults of a
    training step then take longer than some passes over X, more or less of them from call to call.

    Args:
        choice: "kept", or "default" for what the system does.
        reserve: Bytes that the process takes and touches beforehand; at most a quarter of what is free. glibc
            does not always put an aligned block where one of its size was, and fresh pages fault once.
    """
    global _memory
    if choice == "kept" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        # −1 is the largest size: nothing is ever handed back. mallopt returns 1 where it did as told.
        if mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1):
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            torch.ones(min(reserve, free // 4), dtype=torch.uint8)
            _memory = _KEPT


def interleaved(
    runs: Runs, rounds: int, seldom: frozenset[str] = frozenset(), warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each run, all taken in turn so that drift of the machine hits all alike.

    The order turns round in every round. Runs named in `seldom`, too slow for it, take part in every sixth.
    Each runs once before, unless they are `warm`.
    """
    for run in () if warm else runs.values():
        run()
    finish()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in sorted(runs, key=list(runs).index, reverse=bool(turn % 2)):
            if name in seldom and turn % 6:
                continue
            start = time.perf_counter()
            runs[name]()
            finish()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def on_gpu() -> bool:
    """Whether this process has used a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def finish() -> None:
    """Wait for a GPU, which computes behind Python's back."""
    if on_gpu():
        torch.cuda.synchronize()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile in milliseconds."""
    ms = torch.tensor(seconds, dtype=torch.float64) * 1e3
    median, p20, p80 = (float(torch.quantile(ms, q)) for q in (0.5, 0.2, 0.8))
    return {"ms": median, "p20": p20, "p80": p80}


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most memory that `run` held at once beyond what was there before, from the allocator's own record."""
    if on_gpu():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    profiler = profile.profiler
    if profiler is None:
        raise RuntimeError("the profiler left no record")
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def saved_bytes(forward: Callable[[], Any], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters left out."""
    with saving(parameters) as storages:
        output = forward()
    del output
    return sum(storages.values())


@contextmanager
def saving(parameters: list[Tensor]) -> Iterator[dict[int, int]]:
    """Yields address → bytes of each storage that autograd keeps for a backward pass, but for parameters.

    One forward pass, or a step: addresses are taken again once a backward pass has freed them.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def machine() -> dict[str, Any]:
    """Hardware, versions and date that a figure belongs to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        **({"gpu": torch.cuda.get_device_name()} if on_gpu() else {}),
        "threads": torch.get_num_threads(),
        "memory": _memory,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def parser(doc: str | None, rounds: int, batch: int) -> argparse.ArgumentParser:
    """What a benchmark of networks or layers is asked for, with its defaults."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=rounds)
    found.add_argument("--batch", type=int, default=batch)
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    found.add_argument(
        "--allocator", choices=["kept", "default"], default="kept",
        help="on a CPU: whether the process keeps the memory of freed tensors, or as the system has it",
    )  # fmt: skip
    return found


def write_result(name: str, rows: list[dict[str, Any]], device: str = "cpu", dtype: str = "float32") -> Path:
    """Write rows with the machine's description to results/<name>.json.

    For other than float32 on a CPU, to results/<name>-<device>-<dtype>.json.
    """
    RESULTS.mkdir(exist_ok=True)
    if (device, dtype) != ("cpu", "float32"):
        name = f"{name}-{device}-{dtype}"
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
