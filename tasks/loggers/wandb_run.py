"""The W&B run of a run folder: offline without a key, continued by a resumed run, never in training's way."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger

from tasks.loggers.forgiving import forgiving
from tasks.loggers.panels import Panel, ratio_histograms, to_wandb
from tasks.run_folder import RunFolder

WandbMode = Literal["auto", "online", "offline", "disabled"]
_INIT_TIMEOUT_SECONDS = 30
# What is not uploaded by then lies in the run folder, for `make wandb-sync`.
_FINISH_TIMEOUT_SECONDS = 120


@dataclass
class WandbOptions:
    """Weights & Biases.

    Attributes:
        mode: "auto" is online where a key is at hand and offline otherwise; WANDB_MODE decides before that.
        project: Project of the run.
    """

    mode: WandbMode = "auto"
    project: str = "exemplar-norm"


class ResilientWandb(WandbLogger):
    """WandbLogger whose failures do not stop the run."""

    log_image = forgiving(WandbLogger.log_image)
    log_table = forgiving(WandbLogger.log_table)
    after_save_checkpoint = forgiving(WandbLogger.after_save_checkpoint)
    save = forgiving(WandbLogger.save)
    finalize = forgiving(WandbLogger.finalize)

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: RunRecord tells the whole configuration."""

    @forgiving
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, with a histogram over the layers for the ratios among them."""
        super().log_metrics({**metrics, **ratio_histograms(metrics)}, step)

    @forgiving
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's configuration."""
        self.experiment.config.update(dict(config), allow_val_change=True)

    @forgiving
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Add to the run's summary."""
        self.experiment.summary.update(dict(values))

    @forgiving
    def log_panels(self, panels: Mapping[str, Panel]) -> None:
        """Log figures, tables and pictures as W&B's own."""
        found = {name: to_wandb(panel, name) for name, panel in panels.items()}
        if found:
            self.experiment.log(found)

    @forgiving
    def log_dataset(self, name: str, fingerprint: Mapping[str, Any]) -> None:
        """Name the data set of the run as an artifact: equal data is the same version of it."""
        if self._offline:
            return
        import json

        import wandb

        artifact = wandb.Artifact(name, type="dataset", metadata=dict(fingerprint))
        with artifact.new_file("fingerprint.json", mode="w") as file:
            json.dump(fingerprint, file, indent=2, sort_keys=True)
        # Not use_artifact, which waits for the server.
        self.experiment.log_artifact(artifact)

    @forgiving
    def log_checkpoints(self, folder: RunFolder, metadata: Mapping[str, Any]) -> None:
        """Upload the best and the last checkpoint as one artifact."""
        files = [path for path in (folder.best, folder.last) if path.is_file()]
        if self._offline or not files:
            return
        import wandb

        artifact = wandb.Artifact(f"checkpoints-{self.experiment.id}", type="model", metadata=dict(metadata))
        for path in files:
            artifact.add_file(str(path), policy="immutable")  # by reference: no second copy on the disk
        self.experiment.log_artifact(artifact)

    @forgiving
    def finish(self) -> None:
        """End the run."""
        self.experiment.finish()


def start_wandb(folder: RunFolder, options: WandbOptions) -> ResilientWandb | None:
    """Start the W&B run of a folder, or go on with it; None where it is disabled or cannot be started."""
    mode, why = _resolve_mode(options.mode)
    if mode == "disabled":
        return None
    run_id = _kept_run_id(folder.path / "wandb" / "run-id")
    if mode == "online":
        try:
            logger = _start(folder, options.project, run_id, offline=False)
            print(f"W&B: online at {logger.experiment.url}")
            return logger
        except Exception as error:  # no network, a revoked key: the run goes on
            why = f"going online failed: {str(error).partition(chr(10))[0][:100]}"
    try:
        logger = _start(folder, options.project, run_id, offline=True)
    except Exception as error:
        print(f"W&B: off ({error})")
        return None
    print(f"W&B: offline ({why}); upload later with: make wandb-sync RUN={folder.path}")
    return logger


def _start(folder: RunFolder, project: str, run_id: str, offline: bool) -> ResilientWandb:
    import wandb

    run = wandb.init(
        name=folder.path.name,
        dir=folder.path,
        project=project,
        group=folder.path.parent.name,
        id=run_id,
        resume="allow",
        mode="offline" if offline else "online",
        settings=wandb.Settings(
            init_timeout=_INIT_TIMEOUT_SECONDS,
            finish_timeout=_FINISH_TIMEOUT_SECONDS,
            console="off",
            silent=True,
        ),
    )
    # As WandbLogger does for the runs that it starts itself.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return ResilientWandb(experiment=run, project=project, save_dir=folder.path, offline=offline)


def _resolve_mode(mode: WandbMode) -> tuple[str, str]:
    """The mode to use and the reason for it; asks neither the network nor the user."""
    if mode != "auto":
        return mode, f"--wandb.mode {mode}"
    from_environment = os.environ.get("WANDB_MODE", "")
    if from_environment in ("online", "offline", "disabled"):
        return from_environment, f"WANDB_MODE={from_environment}"
    try:
        import wandb

        found = bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
    except Exception:
        found = False
    return ("online", "a key is at hand") if found else ("offline", "no API key")


def _kept_run_id(path: Path) -> str:
    """The W&B run id of this run folder, kept from the first start so that a resumed run continues it.

    A sweep's agent has given the run its id already.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
    return path.read_text().strip()
