"""A training process that is killed in the middle of an epoch, and resumed, ends as one that was not."""

import csv
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from image_trees import imagenet_tree
from task_paths import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    root = imagenet_tree(folder / "imagenet", classes=4, train=24, val=6)
    settings = {
        "dataset": "imagenet",
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "model": {"network": "digits_resnet", "norm": "en", "lr": 0.05, "mixup": 0.2, "cutmix": 1.0},
        "data": {"root": str(root), "batch_size": 8, "num_workers": 2, "train_size": 48},
        "wandb": {"mode": "disabled"},
        "runs_dir": str(folder / "runs"),
    }
    settings["data"] |= {"auto_augment": "trivialaugment", "eval_resize": 56, "eval_size": 48}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(config, name, *options):
    line = [sys.executable, "-m", "tasks.classification", "fit", "--config", str(config), "--name", name]
    return subprocess.Popen(
        [*line, *options], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out


def outcome(config, name):
    folder = config.parent / "runs/classification" / name
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return rows, state


def test_killed_in_the_middle_of_an_epoch(config):
    """Metrics, order of the data included, and weights: equal to the last bit on the CPU."""
    finish(start(config, "whole"))
    process = start(config, "killed")
    steps = config.parent / "runs/classification/killed/metrics.csv"
    for line in process.stdout:
        if line.startswith("epoch 2/4"):
            break
    seen = len(steps.read_text().splitlines())
    while len(steps.read_text().splitlines()) < seen + 3:  # three of the twelve steps of epoch 3
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = finish(start(config, "killed", "--resume", "auto"))
    assert "resuming" in out and "after epoch 2" in out
    (rows, state), (whole_rows, whole_state) = outcome(config, "killed"), outcome(config, "whole")
    assert rows == whole_rows
    assert all(torch.equal(state[key], whole_state[key]) for key in whole_state)
