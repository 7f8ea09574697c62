"""Offline W&B runs of real fits, read back by W&B's own tool; uploads to a stand-in for the server."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from run_files import rows_of
from task_paths import DIGITS, REPOSITORY
from wandb_records import history_of, offline_runs, summary_of
from wandb_server import environment, wandb_server


@pytest.fixture
def offline(fit, monkeypatch):
    """offline(*args) → fit with an offline W&B run."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_SERVICE"):
        monkeypatch.setenv(name, "")  # so that what W&B puts there is taken out again
        monkeypatch.delenv(name)
    return lambda *args: fit("--wandb.mode", "offline", *args)


def untouched():
    """The environment without what W&B has put into this process's, as the address of its service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


def csv_rows(folder):
    return rows_of(folder / "metrics.csv")


METRICS = {"train/loss", "train/lr", "val/loss", "val/top1", "val/top5", "test/top1", "test/top5"}


def scalars(rows, step):
    """{(metric, optimiser step): value} of rows as mappings from names to values."""
    return {
        (name, int(row[step])): float(row[name])
        for row in rows
        for name in METRICS & row.keys()
        if row[name] != ""
    }


def test_the_run_tells_what_metrics_csv_and_config_yaml_hold(offline, runs):
    assert offline("--test", "true", "--model.norm", "en").code == 0
    folder = runs / "digits"
    (run,) = offline_runs(folder)
    logged, kept = scalars(history_of(run), "trainer/global_step"), scalars(csv_rows(folder), "step")
    assert logged == kept and {name for name, _ in kept} == METRICS

    told = summary_of(run)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert told["state"] == "finished" and told["exit_code"] == 0
    assert {
        key: told["config"][key] for key in ("model", "data", "trainer", "dataset", "seed_everything")
    } == {key: config[key] for key in ("model", "data", "trainer", "dataset", "seed_everything")}
    assert told["config"]["command"].startswith("python -m tasks.classification fit ")
    assert "torch" in told["config"]["versions"] and "CPU" in told["config"]["hardware"]
    samples = {split: mark["samples"] for split, mark in told["config"]["data_fingerprint"].items()}
    assert samples == {"train": 1168, "val": 270, "test": 359}

    summary = told["summary"]
    assert summary["best"] == max(float(row["val/top1"]) for row in csv_rows(folder) if row["val/top1"])
    assert summary["test/top1"] == float(csv_rows(folder)[-1]["test/top1"])
    assert summary["epochs"] == 2 and summary["parameters"] > 0 and summary["images_per_second"] > 0
    kinds = {name: summary[name]["_type"] for name in summary if isinstance(summary[name], dict)}
    assert kinds["test/accuracy_by_class"] == kinds["test/mistakes"] == "table-file"
    assert kinds["test/accuracy_over_classes"] == "histogram"
    assert any(name.startswith("test/confusion") for name in kinds)
    (confusion,) = (run / "files/media/table/test").glob("confusion_table*.json")
    # Two batches of 32 test images were evaluated.
    assert sum(row[2] for row in json.loads(confusion.read_text())["data"]) == 64
    assert list((run / "files/media/images/test").glob("most_confident_mistakes*.png"))


def test_a_resumed_run_is_one_run_once_it_is_uploaded(offline, runs, tmp_path):
    assert offline("--trainer.max_epochs", "1").code == 0
    time.sleep(1.1)  # W&B names the folders by the second
    assert offline("--resume", "auto", "--trainer.max_epochs", "2").code == 0
    folder = runs / "digits"
    first, second = offline_runs(folder)
    assert (
        summary_of(first)["run_id"] == summary_of(second)["run_id"] == (folder / "wandb/run-id").read_text()
    )
    with wandb_server() as server:
        venv = Path(sys.executable).parent.parent
        done = subprocess.run(
            ["make", "-o", f"{venv}/.ready", f"VENV={venv}", "wandb-sync", f"RUN={folder}"],
            cwd=REPOSITORY,
            env={**untouched(), **environment(server, tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert list(server.runs) == [(folder / "wandb/run-id").read_text()]
        history = server.history(next(iter(server.runs)))
    assert [row["_step"] for row in history] == list(range(len(history)))
    assert scalars(history, "trainer/global_step") == scalars(csv_rows(folder), "step")


def command(tmp_path, small, *args):
    line = ["fit", "--config", DIGITS, "--config", small, "--runs_dir", tmp_path / "runs", *args]
    return [sys.executable, "-m", "tasks.classification", *map(str, line)]


@pytest.mark.slow
def test_a_killed_wandb_does_not_stop_training(tmp_path, small):
    process = subprocess.Popen(
        command(tmp_path, small, "--wandb.mode", "offline", "--trainer.max_epochs", "40"),
        cwd=REPOSITORY,
        env=untouched(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = tmp_path / "runs/classification/digits"
    try:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        services = [
            p for p in psutil.Process(process.pid).children(recursive=True) if "wandb-core" in p.name()
        ]
        assert services
        for service in services:
            service.kill()
        out, _ = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, out
    assert "ResilientWandb failed, training goes on without it" in out
    assert len([row for row in csv_rows(folder) if row["val/top1"]]) == 40


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path, small):
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    done = subprocess.run(
        command(tmp_path, small, "--wandb.mode", "offline", *ddp),
        cwd=REPOSITORY,
        env=untouched(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/classification/digits"
    (run,) = offline_runs(folder)
    assert scalars(history_of(run), "trainer/global_step") == scalars(csv_rows(folder), "step")


@pytest.mark.slow
def test_online_the_run_is_that_of_its_folder_also_when_it_is_resumed(tmp_path, small):
    folder = tmp_path / "runs/classification/digits"
    online = command(tmp_path, small, "--wandb.mode", "auto", "--resume", "auto")
    with wandb_server() as server:
        env = {**untouched(), **environment(server, tmp_path)}
        for epochs in (2, 3):
            done = subprocess.run(
                [*online, "--trainer.max_epochs", str(epochs)],
                cwd=REPOSITORY,
                env=env,
                capture_output=True,
                text=True,
                timeout=140,
            )
            assert done.returncode == 0, done.stderr
            assert f"W&B: online at {server.address}" in done.stdout
            assert "ResilientWandb failed" not in done.stderr
            run_id = (folder / "wandb/run-id").read_text()
            assert list(server.runs) == [run_id]
            told = scalars(server.history(run_id), "trainer/global_step")
            assert told == scalars(csv_rows(folder), "step")
            assert len([name for name, _ in told if name == "val/top1"]) == epochs
        assert {("model", f"checkpoints-{run_id}"), ("dataset", "digits")} <= set(server.artifacts)


@pytest.mark.slow
def test_the_agent_of_wandb_runs_a_sweep(tmp_path, small):
    path = tmp_path / "rates.yaml"
    shared = ["--config", str(DIGITS), "--config", str(small), "--runs_dir", str(tmp_path / "runs")]
    tree = {
        "method": "grid",
        "metric": {"name": "val/top1", "goal": "maximize"},
        "parameters": {"model.lr": {"values": [0.1, 0.2]}},
        "command": [
            "${env}", "python", "-m", "tasks.classification", "fit", *shared, "--wandb.mode=auto", "${args}",
        ],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(tree))
    with wandb_server() as server:
        # The second as after a preemption, with the argument that the agent adds then.
        server.proposals = [{"model.lr": 0.1}, {"model.lr": 0.2, "_wandb": {}}]
        done = subprocess.run(
            [sys.executable, "-m", "tasks.sweeps", "wandb", str(path), "--runs_dir", str(tmp_path / "runs")],
            cwd=REPOSITORY,
            env={**untouched(), **environment(server, tmp_path)},
            capture_output=True,
            text=True,
            timeout=290,
        )
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(server.sweep_config)["parameters"] == tree["parameters"]
        assert {"UpsertSweep", "CreateAgent", "Heartbeat"} <= set(server.queries)
        assert sorted(server.runs) == ["run1", "run2"], done.stderr
        for run_id, lr, name in (("run1", 0.1, "digits"), ("run2", 0.2, "digits-2")):
            folder = Path(tmp_path / "runs/classification" / name)
            assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["lr"] == lr
            assert (folder / "wandb/run-id").read_text() == run_id
            assert scalars(server.history(run_id), "trainer/global_step") == scalars(csv_rows(folder), "step")
    assert not (REPOSITORY / "wandb").exists()
