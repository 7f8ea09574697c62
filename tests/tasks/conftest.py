"""Run a task's command line in this process, on a shrunken copy of the digits configuration."""

import shutil
import signal
import sys
from dataclasses import dataclass
from functools import partial

import pytest
from image_trees import imagenet_tree
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
def command(monkeypatch, capsys):
    """command(main) → a function from a command line of that main to its Outcome."""
    # The command line is given as an argument; Lightning looks at this one too.
    monkeypatch.setattr(sys, "argv", ["tasks"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored afterwards
    handler = signal.getsignal(signal.SIGINT)

    def run(main, *args):
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

    return lambda main: partial(run, main)


@pytest.fixture
def cli(command):
    """cli(*args) → Outcome of `python -m tasks.classification *args`."""
    from tasks.classification.__main__ import main

    return command(main)


@pytest.fixture
def seg(command):
    """seg(*args) → Outcome of `python -m tasks.segmentation *args`."""
    from tasks.segmentation.__main__ import main

    return command(main)


@pytest.fixture
def fit(cli, small, tmp_path):
    """fit(*args) → Outcome of a small fit whose runs lie in tmp_path / "runs"."""
    return lambda *args: cli(
        "fit", "--config", DIGITS, "--config", small, "--runs_dir", tmp_path / "runs", *args
    )


@pytest.fixture
def handlers():
    """Put the handlers of the signals back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs" / "classification"


@pytest.fixture
def parser_of(monkeypatch, tmp_path):
    """parser_of(task, model, datasets) → a function from options of fit to all that is built, nothing run."""
    from tasks.cli import ExperimentCLI, run

    monkeypatch.setattr(sys, "argv", ["tasks"])
    monkeypatch.setattr(ExperimentCLI, "fit", lambda self, model, datamodule: None)

    def build(task, model, datasets, *args):
        line = ["fit", *map(str, args), "--runs_dir", str(tmp_path / "runs"), "--wandb.mode", "disabled"]
        return run(task, model, datasets, line)

    return lambda *what: partial(build, *what)


@pytest.fixture
def fit_parser(parser_of):
    """fit_parser(*args) → the command line of a classifier's fit with everything built, nothing run."""
    from tasks.classification.__main__ import DATASETS
    from tasks.classification.module import ClassificationModule

    return parser_of("classification", ClassificationModule, DATASETS)


@pytest.fixture
def seg_parser(parser_of):
    """The same of segmentation."""
    from tasks.segmentation.__main__ import DATASETS
    from tasks.segmentation.module import SegmentationModule

    return parser_of("segmentation", SegmentationModule, DATASETS)


@pytest.fixture(scope="session")
def original_tree(tmp_path_factory):
    return imagenet_tree(tmp_path_factory.mktemp("trees") / "imagenet", classes=3, train=3, val=2)


@pytest.fixture
def tree(original_tree, tmp_path):
    """A small tree in ImageNet's layout, for the test to change."""
    return shutil.copytree(original_tree, tmp_path / "imagenet")
