"""Two processes train as one: the same global batches, memory, suspects and metrics."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from run_files import rows_of
from task_paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# No statistics over the batch. Not gn either: here its groups are single channels, and those of one colour
# blow rounding up by 1 / sqrt(eps) in each layer.
CONFIG = {
    "dataset": "digits",
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    | {"limit_train_batches": 4, "limit_val_batches": 2},
    "model": {"network": "digits_resnet", "norm": "ln", "lr": 0.02, "schedule": "constant"},
    "data": {"image_size": 16, "noise": {"kind": "symmetric", "rate": 0.4}},
    "wandb": {"mode": "disabled"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def fit(folder, method, processes, *options):
    """Run folder of a fit on so many processes, 32 images a step in all."""
    name = f"{method}-{processes}"
    line = [sys.executable, "-m", "tasks.noisy_labels", "fit", "--config", "small.yaml", "--name", name]
    line += ["--runs_dir", "runs", "--model.method", method, "--data.batch_size", str(32 // processes)]
    line += ["--trainer.devices", str(processes), *options]
    line += ["--trainer.strategy", "ddp"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "noisy_labels" / name


def load(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("method", "options"),
    [("elr", ()), ("divide_mix", ("--model.loss_options.warm_up", "1"))],
    ids=["elr", "divide_mix"],
)
def test_two_processes_hold_what_one_does(folder, method, options):
    one, two = (fit(folder, method, processes, *options) for processes in (1, 2))
    assert (one / "noisy_labels.csv").read_bytes() == (two / "noisy_labels.csv").read_bytes()
    left, right = (load(run)["noisy_labels"] for run in (one, two))
    # Every sample of the steps was seen once, on whichever process.
    assert torch.equal(left["samples"]["seen"], right["samples"]["seen"])
    assert int(left["samples"]["seen"].sum()) == 128
    assert torch.equal(left["samples"]["score_count"], right["samples"]["score_count"])
    if method == "elr":
        # Gradients are summed in another order: float32 through 8 steps.
        for name, tensor in load(one)["state_dict"].items():
            torch.testing.assert_close(tensor, load(two)["state_dict"][name], rtol=1e-3, atol=1e-4)
        memory = "_extra_state"
        torch.testing.assert_close(left["learner"][memory], right["learner"][memory], rtol=1e-3, atol=1e-4)
        assert int((left["learner"][memory].sum(dim=1) > 0).sum()) == int(
            (left["samples"]["score_count"] > 0).sum()
        )
        suspects = [
            {row["sample"]: float(row["score"]) for row in rows_of(run / "suspects.csv")}
            for run in (one, two)
        ]
        assert suspects[0] == pytest.approx(suspects[1], abs=1e-3)
        for name in ("train/memorised", "train/noise_auroc_suspects", "val/top1"):
            values = [
                [float(row[name]) for row in rows_of(run / "metrics.csv") if row[name]] for run in (one, two)
            ]
            # One sample of the split may fall on the other side of a tie.
            np.testing.assert_allclose(values[0], values[1], atol=0.02)
    else:
        # Each process mixes its own part of a batch; the division before the second epoch follows a warm-up
        # of cross-entropy, which is that of one process.
        for clean, other in zip(left["learner"]["clean"], right["learner"]["clean"], strict=True):
            torch.testing.assert_close(clean, other, rtol=0, atol=0.05)
