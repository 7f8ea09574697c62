"""What a run of a comparison came to, read from its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import yaml

from tasks.compare.plan import Comparison, Run
from tasks.report.facts import METRICS, read_summary
from tasks.report.metrics import Curve, read_metrics

FINISHED, UNFINISHED, FAILED = "finished", "unfinished", "failed"


@dataclass(frozen=True)
class Result:
    """A run and what it came to; None is unknown.

    Attributes:
        run: The run.
        state: "finished", "unfinished" or "failed".
        diverged: Whether a loss was not a finite number.
        monitor: Validation metric that chooses the best checkpoint.
        test: The same metric on the test split.
        best: Best value of the validation metric.
        best_epoch: When it was reached.
        last: Last value of the validation metric.
        epochs: Finished epochs.
        step_ms: Milliseconds that a training step took, loading included.
        seconds: Training and validation.
        parameters: Number of parameters.
        curve: The validation metric over epochs.
        error: What a failed run said last.
    """

    run: Run
    state: str
    diverged: bool = False
    monitor: str = ""
    test: float | None = None
    best: float | None = None
    best_epoch: int | None = None
    last: float | None = None
    epochs: int | None = None
    step_ms: float | None = None
    seconds: float | None = None
    parameters: int | None = None
    curve: Curve = field(default_factory=Curve)
    error: str = ""


def read_result(comparison: Comparison, run: Run, error: str = "") -> Result:
    """Read a run's folder.

    Args:
        comparison: Its comparison.
        run: The run.
        error: What it said last, where it has failed.
    """
    folder = comparison.folder_of(run).path
    curves = read_metrics(folder / METRICS)
    facts = read_summary(folder)
    monitor = facts.monitor if facts else next((name for name in curves if _is_metric(name)), "")
    tested = (facts.test or {}).get(monitor.replace("val/", "test/", 1)) if facts else None
    curve = curves.get(monitor, Curve())
    known = [place for place, value in enumerate(curve.values) if math.isfinite(value)]
    best = max(known, key=lambda place: curve.values[place], default=None)
    losses = (value for name in ("train/loss", "val/loss") for value in curves.get(name, Curve()).values)
    state = FAILED if error else UNFINISHED if tested is None else FINISHED
    return Result(
        run=run,
        state=state,
        diverged=any(not math.isfinite(value) for value in losses),
        monitor=monitor,
        test=tested if state == FINISHED else None,
        best=None if best is None else curve.values[best],
        best_epoch=None if best is None else round(curve.epochs[best]),
        last=curve.values[-1] if curve.values else None,
        epochs=facts.epochs if facts else (round(curve.epochs[-1]) if curve.values else None),
        step_ms=_step_ms(comparison, run, facts.images_per_second, facts.processes) if facts else None,
        seconds=facts.seconds if facts else None,
        parameters=facts.parameters if facts else None,
        curve=curve,
        error=error,
    )


def _is_metric(name: str) -> bool:
    return name in ("val/top1", "val/miou")


def _step_ms(comparison: Comparison, run: Run, speed: float | None, processes: int | None) -> float | None:
    """Milliseconds a step, from the images a second of all processes."""
    path = comparison.folder_of(run).config
    if not speed or not path.is_file():
        return None
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    accumulated = config["trainer"].get("accumulate_grad_batches") or 1
    images: int = config["data"]["batch_size"] * accumulated * (processes or 1)
    return 1000 * images / speed
