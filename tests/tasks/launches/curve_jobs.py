"""What test_dist_worlds.py runs on 1, 2 and 3 machines, each started once: fits, predictions and a test.

The global batch is 48 images on any number of processes.
"""

import os
import shutil
import sys
from pathlib import Path

from task_paths import DIGITS

NORMS = {"bn": "true", "gn": "false", "en": "true"}
"""Normalizer, and whether its batch statistics are synchronised."""


def main(folder: Path) -> None:
    """Train with each normalizer, then evaluate the network that one process trained."""
    from tasks.classification.__main__ import main as classification

    world = int(os.environ["WORLD_SIZE"])
    sys.argv = ["tasks.classification"]  # Lightning looks at it
    common = ["--config", str(DIGITS), "--config", str(folder / "small.yaml")]
    for norm, sync in NORMS.items():
        options = ["--model.norm", norm, "--model.sync", sync, "--data.batch_size", str(48 // world)]
        options += ["--trainer.max_epochs", "2", "--trainer.precision", "64-true"]
        classification(["fit", *common, *options, "--name", f"{norm}-{world}"])
    run = folder / "runs/classification/en-1"
    for command in ("test", "predict"):
        classification([command, "--ckpt_path", str(run / "checkpoints/best.ckpt")])
    if os.environ["RANK"] == "0":
        shutil.move(run / "predictions.csv", folder / f"predictions-{world}.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
