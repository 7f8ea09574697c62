"""The facts of a finished run, kept in `summary.json` beside its report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.report.environment import peak_gpu_memory, peak_memory
from tasks.report.metrics import TEST, Curve, read_metrics
from tasks.whole_file import whole_file

if TYPE_CHECKING:
    import pytorch_lightning as pl

SUMMARY, METRICS, CONFIG, REPORT = "summary.json", "metrics.csv", "config.yaml", "report.html"
UNKNOWN = "–"


@dataclass(frozen=True)
class RunFacts:
    """What the report and the index say about a run; None is unknown.

    Attributes:
        task: Name of the task.
        name: Name of the run.
        dataset: Name of the data set.
        network: Name of the network.
        norm: Key of its normalizer.
        monitor: Validation metric that chooses the best checkpoint.
        best: Its best value.
        test: Metrics of the best checkpoint on the test split.
        epochs: Finished epochs.
        date: When the run ended, ISO 8601 to the second.
        parameters: Number of parameters.
        processes: Number of processes.
        seconds: Training and validation, over all resumes.
        images_per_second: Images that all processes trained on a second, validation left out.
        memory: Largest resident memory of the first process, in bytes.
        gpu_memory: Largest memory of tensors on the first process's GPU, in bytes.
    """

    task: str
    name: str
    dataset: str = UNKNOWN
    network: str = UNKNOWN
    norm: str = UNKNOWN
    monitor: str = ""
    best: float | None = None
    test: dict[str, float] | None = None
    epochs: int | None = None
    date: str = ""
    parameters: int | None = None
    processes: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None


def collect_facts(
    folder: Path, task: str, trainer: pl.Trainer, epochs: int, best: float | None, tested: dict[str, float]
) -> RunFacts:
    """The facts of the run in `folder` that has just ended.

    A run that had all of its epochs already is only tested: what it measured while it trained is taken over
    from its `summary.json`.

    Args:
        folder: Run folder.
        task: Name of the task.
        trainer: The trainer that ran it.
        epochs: Finished epochs.
        best: Best value of the monitored metric.
        tested: Metrics on the test split; empty where it was not tested.
    """
    from tasks.report.meter import Meter

    model: Any = trainer.lightning_module
    meter = next((found for found in trainer.callbacks if isinstance(found, Meter)), Meter())  # type: ignore[attr-defined]
    now = replace(
        facts_of_config(folder),
        task=task,
        monitor=model.monitor,
        best=best,
        test=tested or None,
        epochs=epochs,
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        processes=trainer.world_size,
        seconds=meter.seconds or None,
        images_per_second=meter.images_per_second,
        memory=peak_memory(),
        gpu_memory=peak_gpu_memory(),
    )
    if meter.seconds:
        return now
    before = read_summary(folder)
    return replace(
        before or now,
        **{name: value for name, value in asdict(now).items() if value is not None and name != "memory"},
    )


def write_summary(folder: Path, facts: RunFacts) -> None:
    """Write `summary.json`."""
    with whole_file(folder / SUMMARY) as file:
        file.write(json.dumps(asdict(facts), indent=2) + "\n")


def read_summary(folder: Path) -> RunFacts | None:
    """The facts in `summary.json`; None without the file or where it holds something else."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return RunFacts(
            **{field.name: stored[field.name] for field in fields(RunFacts) if field.name in stored}
        )
    except (ValueError, TypeError, AttributeError):  # no JSON, no mapping, or one without a run's name
        return None


def facts_of_config(folder: Path) -> RunFacts:
    """Task, name, data set, network and normalizer, from the place and the configuration of a run."""
    path = folder / CONFIG
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    config = config if isinstance(config, dict) else {}
    model = config.get("model")
    model = model if isinstance(model, dict) else {}
    return RunFacts(
        task=folder.absolute().parent.name,
        name=folder.name,
        dataset=str(config.get("dataset", UNKNOWN)),
        network=str(model.get("network", UNKNOWN)),
        norm=str(model.get("norm", UNKNOWN)),
    )


def facts_of_folder(folder: Path) -> tuple[RunFacts, dict[str, Curve]]:
    """Facts and curves of any run; without a `summary.json`, what configuration and metrics tell."""
    curves = read_metrics(folder / METRICS)
    summary = read_summary(folder)
    if summary:
        return replace(summary, name=folder.name), curves
    facts = facts_of_config(folder)
    monitor = next((name for name in sorted(curves) if name.startswith("val/") and "loss" not in name), "")
    # Lightning names a metric's column in alphabetical order: "val/top1" comes before "val/top5".
    watched = curves.get(monitor)
    changed = (folder / (METRICS if curves else CONFIG)).stat().st_mtime
    return (
        replace(
            facts,
            monitor=monitor,
            best=max(watched.values) if watched else None,
            test={name: curve.values[-1] for name, curve in curves.items() if name.startswith(TEST)} or None,
            epochs=round(watched.epochs[-1]) if watched else None,
            date=datetime.fromtimestamp(changed).astimezone().isoformat(timespec="seconds"),
        ),
        curves,
    )
