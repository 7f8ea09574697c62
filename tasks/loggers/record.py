"""What W&B is told of a run beside its curves: how it was started, what it was trained on, what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from tasks.errors import UserError
from tasks.loggers.forgiving import forgiving
from tasks.loggers.panels import Histogram, Panel, Rows
from tasks.loggers.wandb_run import ResilientWandb
from tasks.run_folder import RunFolder

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from tasks.report.facts import RunFacts


class RunRecord(Callback):
    """Tell W&B the whole configuration, the system and the data set when a run starts.

    Args:
        folder: Run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Now that the configuration is saved and the data is there."""
        for logger in _wandb_of(trainer.loggers):
            _record_start(logger, self.folder, trainer.datamodule)  # type: ignore[attr-defined]


def publish(
    loggers: list[Logger], folder: RunFolder, facts: RunFacts, panels: Callable[[], Mapping[str, Panel]]
) -> None:
    """Tell W&B what came out of a run: summary, panels, checkpoints.

    Args:
        loggers: Loggers of the run.
        folder: Run folder.
        facts: What the report says about the run.
        panels: Builds what the task shows; not called without W&B.
    """
    for logger in _wandb_of(loggers):
        known = {name: value for name, value in asdict(facts).items() if value is not None and name != "test"}
        logger.log_summary({**known, **(facts.test or {})})
        _record_panels(logger, folder, panels)
        logger.log_checkpoints(folder, known)


@forgiving
def _record_start(logger: ResilientWandb, folder: RunFolder, data: Any) -> None:
    from tasks.report import environment

    text = folder.config.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    marks = fingerprint(data)
    system = {
        "command": text.partition("\n")[0].removeprefix("# "),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "revision": environment.revision(),
        "data_fingerprint": marks,
    }
    logger.log_config({**config, **system})
    logger.log_dataset(config["dataset"], marks)


@forgiving
def _record_panels(
    logger: ResilientWandb, folder: RunFolder, panels: Callable[[], Mapping[str, Panel]]
) -> None:
    logger.log_panels({**panels(), **_ratio_panels(folder)})


def fingerprint(data: Any) -> dict[str, Any]:
    """Size and SHA-256 of each split of a data module, over the samples' names and, where it has any, labels.

    Splits that the data set lacks are left out. No image is read.
    """
    found: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        try:
            size = len(data.examples(split))
            labels = data.labels(split).tolist() if hasattr(data, "labels_of") else [""] * size
        except (UserError, OSError, ValueError):  # as a test split that was not downloaded
            continue
        digest = hashlib.sha256()
        for index in range(size):
            digest.update(f"{data.sample_name(split, index)}\t{labels[index]}\n".encode())
        found[split] = {"samples": size, "sha256": digest.hexdigest()}
    return found


def _ratio_panels(folder: RunFolder) -> dict[str, Panel]:
    """The layers' mixtures after the last validation; nothing for a network without such layers."""
    from tasks.ratios.table import read_ratios

    epochs = [epoch for epoch in read_ratios(folder.path) if epoch.split == "val"]
    if not epochs:
        return {}
    layers = epochs[-1].layers
    rows = [
        [
            layer.layer,
            layer.kind,
            layer.mixture,
            normalizer,
            *map(float, means),
            layer.entropy,
            layer.spread,
        ]
        for layer in layers
        for normalizer, *means in zip(layer.normalizers, layer.mean, layer.std, layer.largest, strict=True)
    ]
    columns = ("layer", "kind", "mixture", "normalizer", "mean", "std", "largest", "entropy", "spread")
    return {
        "ratios_by_layer": Rows(columns, rows),
        "ratio_entropy": Histogram(np.array([layer.entropy for layer in layers])),
    }


def _wandb_of(loggers: list[Logger]) -> list[ResilientWandb]:
    return [logger for logger in loggers if isinstance(logger, ResilientWandb)]
