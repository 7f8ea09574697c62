"""A run of the command line on an image tree that is gone afterwards."""

import shutil
import signal
import sys

import pytest
import yaml
from image_trees import imagenet_tree, write_meta

from tasks.classification.__main__ import main


def fit_and_forget(folder):
    """Fit a classifier of three classes (32×32 inputs), delete its images, and return the run's folder."""
    tree = imagenet_tree(folder / "imagenet", classes=3, train=8, val=4)
    write_meta(tree)
    config = {
        "dataset": "imagenet",
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "model": {"network": "digits_resnet", "norm": "en", "lr": 0.05},
        "data": {"root": str(tree), "batch_size": 8, "num_workers": 0, "train_size": 32}
        | {"eval_resize": 36, "eval_size": 32},
        "wandb": {"mode": "disabled"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        # The command line is given as an argument; Lightning looks at this one too.
        patch.setattr(sys, "argv", ["tasks.classification"])
        patch.setenv("PL_GLOBAL_SEED", "0")  # restored afterwards
        try:
            main(["fit", "--config", str(path), "--runs_dir", str(folder / "runs")])
        finally:
            signal.signal(signal.SIGINT, handler)
    shutil.rmtree(tree)
    return folder / "runs" / "classification" / "tiny"
