"""Small fits of classification: their command lines, and what they leave."""

import torch
from run_files import rows_of
from task_paths import DIGITS

EPOCH = 12
SMALL = {
    "trainer": {
        "max_epochs": 3,
        "limit_train_batches": EPOCH,
        "limit_val_batches": 1.0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "pausing.Pause"}],
    },
    "model": {"norm": "en", "sync": True},
    "data": {"batch_size": 24, "image_size": 16},
    "wandb": {"mode": "disabled"},
}


def fit(folder, name, *options):
    """Command line of a fit behind `python -m tasks.`; the best is tested at its end."""
    files = ["--config", DIGITS, "--config", folder / "small.yaml"]
    return ["classification", "fit", *files, "--name", name, "--test", "true", *options]


def launch(folder, name, *options, processes=2, machine=()):
    """The same of several processes, behind `python -m`."""
    return ["tasks.launch", "--processes", processes, *machine, *fit(folder, name, *options)]


def run_of(folder, name):
    return folder / "runs/classification" / name


def outcome(folder, name):
    """Rows of the metrics and the last weights."""
    rows = rows_of(run_of(folder, name) / "metrics.csv")
    state = torch.load(run_of(folder, name) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return rows, state


def assert_equal_runs(folder, left, right):
    """Equal to the last bit: two ranks' sums do not depend on their order."""
    (rows, state), (other_rows, other) = outcome(folder, left), outcome(folder, right)
    assert rows == other_rows
    assert all(torch.equal(state[key], other[key]) for key in other)
