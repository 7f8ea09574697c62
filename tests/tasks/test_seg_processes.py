"""Segmentation in several processes, and in one that is killed: the results of an undisturbed one."""

import csv
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from seg_trees import cityscapes_tree
from task_paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Three images to validate: two processes have unequal shares, of images of unequal sizes."""
    folder = tmp_path_factory.mktemp("processes")
    root = cityscapes_tree(folder / "cityscapes", train=12, val=3, odd=True)
    settings = {
        "dataset": "cityscapes",
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "model": {"network": "deeplabv3", "encoder": "resnet18", "norm": "en", "lr": 0.01, "head_lr": 10.0},
        "data": {"root": str(root), "crop_size": [48, 48], "scale": [144, 96], "num_workers": 2},
        "wandb": {"mode": "disabled"},
        "runs_dir": str(folder / "runs"),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(config, stage, *options):
    line = [sys.executable, "-m", "tasks.segmentation", stage, "--config", str(config), *map(str, options)]
    return subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def whole(config):
    """The folder of a run that nothing disturbed."""
    finish(start(config, "fit", "--name", "whole"))
    return config.parent / "runs/segmentation/whole"


def rows_and_state(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_two_processes_score_as_one(config, whole):
    """Sums of integers, to the last digit; iIoU's weights are added in another order, unseen here."""
    checkpoint, table = whole / "checkpoints/best.ckpt", whole / "iou_by_class.csv"
    results = []
    for options in ((), ("--trainer.devices", "2", "--trainer.strategy", "ddp")):
        out = finish(start(config, "test", "--ckpt_path", checkpoint, *options))
        shown = [line for line in out.splitlines() if "test/" in line]
        pictures = {path.name: path.read_bytes() for path in (whole / "comparisons").rglob("*.png")}
        results.append((shown, table.read_text(), pictures))
    assert results[0] == results[1]
    assert len(results[0][0]) == 3 and len(results[0][2]) == 4


def test_killed_in_the_middle_of_an_epoch(config, whole):
    """Metrics, order of the data included, and weights: equal to the last bit on the CPU."""
    process = start(config, "fit", "--name", "killed")
    steps = whole.parent / "killed/metrics.csv"
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            break
    seen = len(steps.read_text().splitlines())
    while len(steps.read_text().splitlines()) < seen + 2:  # of the six steps of epoch 2
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = finish(start(config, "fit", "--name", "killed", "--resume", "auto"))
    assert "resuming" in out and "after epoch 1" in out
    (rows, state), (whole_rows, whole_state) = rows_and_state(steps.parent), rows_and_state(whole)
    assert rows == whole_rows
    assert all(torch.equal(state[key], whole_state[key]) for key in whole_state)
