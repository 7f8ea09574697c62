"""Run a task's command line in this process, on a shrunken copy of the digits configuration."""

import signal
import sys
from dataclasses import dataclass

import pytest
from task_paths import DIGITS

SMALL = """
trainer:
  max_epochs: 2
  limit_train_batches: 3
  limit_val_batches: 2
  limit_test_batches: 2
  limit_predict_batches: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
model:
  norm: bn
data:
  batch_size: 32
  image_size: 16
wandb:
  mode: disabled
"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self):
        """The error line; nothing else may stand on stderr but the line that says what is loaded."""
        lines = [line for line in self.err.splitlines() if "loading the libraries" not in line]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err and "usage" not in self.err
        return lines[0]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def cli(monkeypatch, capsys):
    """cli(*args) → Outcome of `python -m tasks.classification *args`."""
    from tasks.classification.__main__ import main

    # The command line is given as an argument; Lightning looks at this one too.
    monkeypatch.setattr(sys, "argv", ["tasks.classification"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored afterwards
    handler = signal.getsignal(signal.SIGINT)

    def run(*args):
        capsys.readouterr()
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.signal(signal.SIGINT, handler)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def fit(cli, small, tmp_path):
    """fit(*args) → Outcome of a small fit whose runs lie in tmp_path / "runs"."""
    return lambda *args: cli(
        "fit", "--config", DIGITS, "--config", small, "--runs_dir", tmp_path / "runs", *args
    )


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs" / "classification"


@pytest.fixture
def fit_parser(monkeypatch, tmp_path):
    """fit_parser(*args) → the command line of fit with everything built, and nothing run."""
    from tasks.classification.__main__ import DATASETS
    from tasks.classification.module import ClassificationModule
    from tasks.cli import ExperimentCLI, run

    monkeypatch.setattr(sys, "argv", ["tasks.classification"])
    monkeypatch.setattr(ExperimentCLI, "fit", lambda self, model, datamodule: None)

    def build(*args):
        line = ["fit", *map(str, args), "--runs_dir", str(tmp_path / "runs"), "--wandb.mode", "disabled"]
        return run("classification", ClassificationModule, DATASETS, line)

    return build
