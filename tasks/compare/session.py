"""One call of a comparison: what is checked first, what is run, what is written at the end."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.compare import marks
from tasks.compare.display import Progress, display
from tasks.compare.outcome import show_outcome
from tasks.compare.plan import Comparison, Run, cores
from tasks.compare.pool import Pool
from tasks.compare.results import FINISHED, Result, read_result
from tasks.errors import INTERRUPTED, UserError


def compare(comparison: Comparison, jobs: int | None, markdown: Path | None, again: str) -> None:
    """Run what is missing, then write and print the outcome.

    Args:
        comparison: What is compared.
        jobs: Runs at a time; None for as many as there are cores for.
        markdown: Document that gets the table too.
        again: The command line of this call.

    Raises:
        UserError: Anything about the input that is wrong, before a run starts.
        SystemExit: With code 1 where a run has failed, with 130 after Ctrl-C, when the runs have saved where
            they stand.
    """
    if markdown:
        marks.check(markdown)
    print(f"compare: {' + '.join(comparison.configs)} (loading the libraries …)", file=sys.stderr, flush=True)
    config = comparison.configurations[comparison.norms[0]]
    jobs, threads = share(config, jobs, len(comparison.runs))
    with locked(comparison.folder) as lock:
        comparison.check_same()
        (comparison.folder / "logs").mkdir(exist_ok=True)
        failed: dict[Run, str] = {}
        try:
            _run_missing(comparison, jobs, threads, lock, failed)
        except KeyboardInterrupt:
            show_outcome(comparison, _results(comparison, failed), jobs, threads)
            print(f"interrupted: what is there is kept; go on with\n  {again}", flush=True)
            raise SystemExit(INTERRUPTED) from None
        results = _results(comparison, failed)
        show_outcome(comparison, results, jobs, threads, markdown)
    if failed:
        print(f"failed: {', '.join(run.name for run in failed)}", flush=True)
        raise SystemExit(1)


def share(config: dict[str, Any], jobs: int | None, runs: int) -> tuple[int, int]:
    """Runs at a time, and threads of each, so that together they have no more than the cores that are there.

    Args:
        config: Configuration of a run.
        jobs: As it was asked for; None for as many as fit, on a GPU one.
        runs: Number of runs.

    Raises:
        UserError: More was asked for than there is.
    """
    there, threads = cores(), config["threads"] or cores()
    workers = config["data"].get("num_workers") or 0
    if threads > there:
        raise UserError(f"threads: expected at most {there}, the CPU cores that are there, got {threads}")
    most = max(there // (threads + workers), 1)
    if jobs is None:
        jobs = 1 if _on_gpu(config) else most
    elif jobs > most:
        several = "s" if threads > 1 else ""
        loaders = f" and {workers} loader processes" if workers else ""
        raise UserError(
            f"--jobs: expected at most {most} ({there} cores; a run has {threads} thread{several}{loaders}), "
            f"got {jobs}"
        )
    return min(jobs, runs), threads


def _on_gpu(config: dict[str, Any]) -> bool:
    import torch

    return config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a comparison's folder; yields the descriptor of its lock, which is free once all that hold it end.

    Raises:
        UserError: Another process holds it: a comparison, or a run that outlived one that was killed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from error
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: a comparison of this name is running; choose a --name") from None
        yield file.fileno()


def _run_missing(comparison: Comparison, jobs: int, threads: int, lock: int, failed: dict[Run, str]) -> None:
    results = {run: read_result(comparison, run) for run in comparison.runs}
    missing = [run for run, result in results.items() if result.state != FINISHED]
    several = "s" if threads > 1 else ""
    print(
        f"{comparison.folder}: {len(results)} runs, {len(results) - len(missing)} of them finished before; "
        f"{jobs} at a time, {threads} thread{several} each, on {cores()} cores",
        flush=True,
    )
    epochs = comparison.configurations[comparison.norms[0]]["trainer"]["max_epochs"] or 0
    with display(comparison.runs, epochs if epochs > 0 else None) as shown:
        for run, result in results.items():
            if result.state == FINISHED:
                shown.show(run, Progress(FINISHED, result.epochs or 0, result.monitor, result.last))
        Pool(comparison, jobs, threads, lock, shown, failed).run(missing)


def _results(comparison: Comparison, failed: dict[Run, str]) -> list[Result]:
    return [read_result(comparison, run, failed.get(run, "")) for run in comparison.runs]
