"""Sweeps on this machine: Optuna over a stand-in for the task, which writes the metrics of a run at once."""

import csv
import itertools
import os
import stat
import sys
import time

import pytest
import yaml

from tasks.errors import UserError

pytest.importorskip("optuna")

from tasks.sweeps import local

pytestmark = pytest.mark.slow

# val/top1 after epoch e is 1 − |lr − 0.3| − 1/e, so the best rate is 0.3; a rate above 0.9 breaks.
TASK = """#!{python}
import sys, time
from pathlib import Path

options = dict(arg.split("=", 1) for arg in sys.argv if arg.startswith("--") and "=" in arg)
after = dict(zip(sys.argv, sys.argv[1:]))
folder = Path(after["--runs_dir"]) / "classification" / after["--name"]
folder.mkdir(parents=True, exist_ok=True)
(folder / "args").write_text(repr(sys.argv[1:]))
lr = float(options["--model.lr"])
if lr > 0.9:
    sys.exit("broken")
with open(folder / "metrics.csv", "w") as file:
    print("epoch,step,val/top1", file=file, flush=True)
    for epoch in range(4):
        print(f"{{epoch}},{{epoch}},{{1 - abs(lr - 0.3) - 1 / (epoch + 1)}}", file=file, flush=True)
        time.sleep(float(options.get("--sleep", 0)))
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """sweep(**changes) → run(count) of a sweep file with the stand-in as Python; returns its ranking."""
    program = tmp_path / "python"
    program.write_text(TASK.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(local.sys, "executable", str(program))
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.05)

    def build(**changes):
        tree = {
            "method": "grid",
            "metric": {"name": "val/top1", "goal": "maximize"},
            "parameters": {"model.lr": {"values": [0.1, 0.25, 0.6]}, "data.batch_size": {"values": [2, 4]}},
            "command": ["${env}", "python", "-m", "tasks.classification", "fit", "--config=x", "${args}"],
        }
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump(tree | changes))

        def run(count):
            local.run_locally(path, count, tmp_path / "runs")
            with (tmp_path / "runs/sweeps/rates/ranking.csv").open(newline="") as file:
                return list(csv.DictReader(file))

        return run

    return build


def names(rows):
    return sorted(row["run"] for row in rows)


def test_a_grid_is_run_whole_once_and_ranked(sweep, tmp_path, capsys):
    run = sweep()
    rows = run(100)
    pairs = {(row["model.lr"], row["data.batch_size"]) for row in rows}
    assert pairs == set(itertools.product(["0.1", "0.25", "0.6"], ["2", "4"])) and len(rows) == 6
    # By distance of the rate from 0.3, with 1/4 taken off after four epochs.
    assert [row["model.lr"] for row in rows] == ["0.25", "0.25", "0.1", "0.1", "0.6", "0.6"]
    assert [float(row["val/top1"]) for row in rows[::2]] == pytest.approx([0.7, 0.55, 0.45], abs=1e-12)
    assert [row["rank"] for row in rows] == list("123456")
    folder = tmp_path / "runs/sweeps/rates"
    assert {"history.png", "slices.png", "parallel.png"} <= {path.name for path in folder.iterdir()}
    args = (tmp_path / "runs/classification/rates-sweep-0/args").read_text()
    assert args.startswith("['-m', 'tasks.classification', 'fit', '--config=x', '--")
    assert "'--model.lr=0." in args
    assert "'--name', 'rates-sweep-0'" in args and "'--resume', 'auto'" in args
    assert "the best of 6 runs" in capsys.readouterr().out
    assert run(100) == rows  # nothing is left to run
    assert len(list((tmp_path / "runs/classification").iterdir())) == 6


def test_a_sweep_goes_on_where_it_was(sweep, tmp_path):
    run = sweep(method="random")
    first = run(2)
    rows = run(4)
    assert len(first) == 2 and len(rows) == 4
    assert set(names(first)) < set(names(rows)) == {f"rates-sweep-{i}" for i in range(4)}
    for row in first:
        (again,) = (other for other in rows if other["run"] == row["run"])
        assert again["val/top1"] == row["val/top1"]


def test_an_interrupted_run_goes_on_under_its_name_with_its_values(sweep, tmp_path, monkeypatch):
    run = sweep()
    run(1)
    watch = local._Runs._watch

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(local._Runs, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    cut = (tmp_path / "runs/sweeps/rates/rates-sweep-1.log").is_file()
    assert cut and len(list((tmp_path / "runs/sweeps/rates").glob("*.log"))) == 2
    monkeypatch.setattr(local._Runs, "_watch", watch)
    rows = run(100)
    assert names(rows) == sorted([f"rates-sweep-{i}" for i in (0, 1, 3, 4, 5, 6)])
    assert len({(row["model.lr"], row["data.batch_size"]) for row in rows}) == 6


def test_a_process_that_was_killed_left_a_run_that_goes_on(sweep, tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    run = sweep()
    run(1)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "runs/sweeps/rates/study.journal")))
    study = optuna.load_study(study_name="rates", storage=storage, sampler=optuna.samplers.RandomSampler(0))
    trial = study.ask()  # begun, and never told of
    trial.set_user_attr("run", "rates-sweep-1")
    trial.suggest_categorical("model.lr", ["0.1", "0.25", "0.6"])
    trial.suggest_categorical("data.batch_size", ["2", "4"])
    rows = run(2)
    assert names(rows) == ["rates-sweep-0", "rates-sweep-1"]
    (again,) = (row for row in rows if row["run"] == "rates-sweep-1")
    assert again["model.lr"] == trial.params["model.lr"]
    assert again["data.batch_size"] == trial.params["data.batch_size"]


def test_a_broken_run_is_told_and_left_out(sweep, capsys):
    parameters = {"model.lr": {"values": [0.2, 0.95]}}
    rows = sweep(parameters=parameters)(5)
    assert [row["model.lr"] for row in rows] == ["0.2"]
    out = capsys.readouterr().out
    assert out.count("failed, see ") == 1


def test_weak_runs_end_early(sweep, tmp_path):
    # Rungs after 1 and 2 values: of runs that are as slow as this, the weak ones are given up.
    parameters = {"model.lr": {"values": [0.3, 0.85, 0.8, 0.75, 0.7, 0.65]}, "sleep": {"value": 0.4}}
    rule = {"type": "hyperband", "min_iter": 1, "max_iter": 2, "eta": 2}
    started = time.monotonic()
    rows = sweep(parameters=parameters, early_terminate=rule)(6)
    states = {row["model.lr"]: row["state"] for row in rows}
    assert len(states) == 6 and states["0.3"] == "complete" and "pruned" in states.values()
    assert rows[0]["model.lr"] == "0.3"
    for row in rows:
        with (tmp_path / "runs/classification" / row["run"] / "metrics.csv").open() as file:
            values = len(file.readlines()) - 1
        assert values == 4 if row["state"] == "complete" else values < 4
    assert time.monotonic() - started < 60


def test_values_lie_in_their_ranges_and_are_repeated_by_the_seed(sweep):
    parameters = {
        "model.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.9},
        "data.batch_size": {"min": 2, "max": 9},
        "model.min_lr": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
        "model.momentum": {"min": 0.5, "max": 0.9},
    }
    rows = sweep(method="bayes", parameters=parameters)(6)
    assert len(rows) == 6
    for row in rows:
        assert 0.001 <= float(row["model.lr"]) <= 0.9 and 0.5 <= float(row["model.momentum"]) <= 0.9
        assert row["data.batch_size"] in "23456789"
        assert float(row["model.min_lr"]) % 0.25 == 0
    assert len({row["model.lr"] for row in rows}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": None, "method": "random"}, "metric: expected name and goal, which the ranking needs"),
        (
            {"method": "random", "parameters": {"model.lr": {"distribution": "normal", "mu": 0, "sigma": 1}}},
            "parameters.model.lr: expected values, uniform",
        ),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type: expected hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "expected min_iter, or max_iter and s, got neither"),
    ],
)
def test_what_optuna_cannot_do_is_refused(sweep, changes, message):
    with pytest.raises(UserError, match=message):
        sweep(**changes)(1)


def test_names_of_runs_that_are_there_already_are_not_taken(sweep, tmp_path):
    old = tmp_path / "runs/classification/rates-sweep-0"
    os.makedirs(old)
    rows = sweep()(1)
    assert names(rows) == ["rates-sweep2-0"] and not any(old.iterdir())
