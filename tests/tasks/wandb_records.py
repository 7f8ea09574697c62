"""Read an offline W&B run back with W&B's own tool."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

WANDB = shutil.which("wandb", path=str(Path(sys.executable).parent)) or "wandb"


def offline_runs(folder):
    """The folders of the offline runs in a run folder, in the order in which they were started."""
    return sorted((folder / "wandb").glob("offline-run-*"))


def inspect(run, *options):
    done = subprocess.run(
        [WANDB, "leet", "inspect", "--json", *options, str(run)], capture_output=True, text=True, check=True
    )
    return done.stdout


def summary_of(run):
    """State, configuration and summary of a run."""
    return json.loads(inspect(run, "--summary"))


def history_of(run):
    """The logged rows, by the names of their values."""
    records = [json.loads(line) for line in inspect(run).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]
