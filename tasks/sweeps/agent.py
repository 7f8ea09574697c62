"""A sweep that W&B steers: created there, run here by its agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tasks.errors import UserError
from tasks.sweeps.file import load_sweep


def run_with_wandb(path: Path, count: int | None, project: str, runs_dir: Path) -> None:
    """Create the sweep, and run its commands one after the other.

    Args:
        path: File of the sweep.
        count: Runs at most; None for as many as W&B hands out.
        project: Project of the sweep.
        runs_dir: Parent of the run folders, where the agent keeps its own files too.

    Raises:
        UserError: The sweep cannot work, or no key is at hand.
    """
    sweep = load_sweep(path)
    import wandb

    if not (os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False)):
        raise UserError(
            f"W&B: expected a key (wandb login), got none; make sweep-local SWEEP={path} needs none"
        )
    own = runs_dir / "sweeps"
    own.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_DIR", str(own))
    # The agent runs "python": the one that runs this.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    sweep_id = wandb.sweep(sweep.tree, project=project)
    wandb.agent(sweep_id, project=project, count=count)
