"""What test_dist_tasks.py runs on 1, 2 and 3 machines, each started once: fits of two tasks, and their tests.

The global batch is the same on any number of processes.
"""

import os
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

SCORES = "iou_by_class.csv"
FITS = {
    "elr": ("noisy_labels", 24, ["--model.method", "elr"]),
    "co_teaching": ("noisy_labels", 24, ["--model.method", "co_teaching"]),
    "scenes": ("segmentation", 6, []),
}
"""Name of a run, its task, its global batch, and options beside those in <task>.yaml."""


def run_of(folder, name, world):
    """Folder of the run of a name on so many processes."""
    return folder / "runs" / FITS[name][0] / f"{name}-{world}"


def main(folder: Path, others: list[int]) -> None:
    """Fit and test; then test what other numbers of processes have trained."""
    from tasks.noisy_labels.__main__ import main as noisy_labels
    from tasks.segmentation.__main__ import main as segmentation

    world, first = int(os.environ["WORLD_SIZE"]), os.environ["RANK"] == "0"
    sys.argv = ["tasks"]  # Lightning looks at it
    commands = {"noisy_labels": noisy_labels, "segmentation": segmentation}
    for name, (task, batch, options) in FITS.items():
        line = ["fit", "--config", str(folder / f"{task}.yaml"), *options, "--test", "true"]
        line += ["--name", f"{name}-{world}", "--data.batch_size", str(batch // world)]
        commands[task](line)
        scores = run_of(folder, name, world) / SCORES
        if first and scores.is_file():
            shutil.copy(scores, folder / f"{name}-{world}.csv")
    for other in others:
        for name, (task, *_) in FITS.items():
            commands[task](["test", "--ckpt_path", str(run_of(folder, name, other))])
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(world) for world in sys.argv[2:]])
