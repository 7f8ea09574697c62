"""Run folders, resume and loggers, by real fits through the command line."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from run_files import rows_of
from task_paths import DIGITS, REPOSITORY

from tasks.classification.module import ClassificationModule


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(left, right, path=""):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert left == right, path


def interrupt_in(monkeypatch, epoch, batch):
    """Press Ctrl-C in the given batch, once."""
    step = ClassificationModule.training_step

    def training_step(self, data, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            monkeypatch.setattr(ClassificationModule, "training_step", step)
            raise KeyboardInterrupt
        return step(self, data, batch_idx)

    monkeypatch.setattr(ClassificationModule, "training_step", training_step)


def test_a_fit_fills_its_own_folder(fit, runs):
    first = fit("--test", "true")
    assert first.code == 0, first.err
    folder = runs / "digits"
    files = ["checkpoints", "config.yaml", "metrics.csv", "report.html", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    rows = rows_of(folder / "metrics.csv")
    assert {"train/loss", "val/loss", "val/top1", "val/top5", "test/top1", "test/top5"} <= rows[0].keys()
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3", "4", "5"]
    assert [row["step"] for row in rows if row["val/top1"]] == ["2", "5"]
    for row in rows:
        for name in ("val/top1", "val/top5", "test/top1", "test/top5"):
            assert row[name] == "" or 0 <= float(row[name]) <= 1
    best = max(float(row["val/top1"]) for row in rows if row["val/top1"])
    assert f"best val/top1 │ {best:.4f}" in first.out
    assert f"test/top1     │ {float(rows[-1]['test/top1']):.4f}" in first.out
    assert "parameters" in first.out and "wall time" in first.out and str(folder) in first.out
    assert "💡" not in first.out + first.err

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert fit("--trainer.max_epochs", "1").code == 0
    assert sorted(path.name for path in runs.iterdir()) == ["digits", "digits-2"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_last_is_the_last_epoch_and_best_the_best(fit, runs):
    assert fit("--trainer.max_epochs", "3").code == 0
    folder = runs / "digits"
    scores = [float(row["val/top1"]) for row in rows_of(folder / "metrics.csv") if row["val/top1"]]
    assert load(folder / "checkpoints/last.ckpt")["epoch"] == 2
    assert load(folder / "checkpoints/best.ckpt")["epoch"] == scores.index(max(scores))


def test_the_saved_configuration_repeats_the_run(fit, cli, runs, tmp_path):
    assert fit("--trainer.max_epochs", "1", "--model.lr", "0.05").code == 0
    saved = runs / "digits" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["lr"] == 0.05
    assert saved.read_text().startswith("# python -m tasks.classification fit --config ")
    again = cli("fit", "--config", saved, "--name", "again")
    assert again.code == 0, again.err
    assert_same(*(load(runs / name / "checkpoints/last.ckpt")["state_dict"] for name in ("digits", "again")))
    tested = cli("test", "--config", saved, "--ckpt_path", runs / "digits/checkpoints/best.ckpt")
    assert tested.code == 0 and "test/top1" in tested.out, tested.err


@pytest.mark.parametrize("norm", ["bn", "en"])
def test_an_interrupted_run_that_is_resumed_equals_an_uninterrupted_one(fit, runs, monkeypatch, norm):
    options = ("--trainer.max_epochs", "3", "--test", "true", "--model.norm", norm)
    assert fit(*options, "--name", "whole").code == 0
    interrupt_in(monkeypatch, epoch=2, batch=1)
    broken = fit(*options, "--name", "broken", "--resume", "auto")  # nothing to resume: it starts
    assert broken.code == 130
    last = runs / "broken/checkpoints/last.ckpt"
    assert f"--resume {last}" in broken.out and broken.out.count("--resume") == 1
    assert load(last)["epoch"] == 1
    resumed = fit(*options, "--name", "broken", "--resume", "auto")
    assert resumed.code == 0, resumed.err
    assert "after epoch 2" in resumed.out
    assert sorted(path.name for path in runs.iterdir()) == ["broken", "whole"]
    assert rows_of(runs / "broken/metrics.csv") == rows_of(runs / "whole/metrics.csv")
    whole, broken = (load(runs / name / "checkpoints/last.ckpt") for name in ("whole", "broken"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(whole[part], broken[part], part)
    assert (runs / "broken/checkpoints/best.ckpt").is_file()


def test_ctrl_c_before_the_first_epoch_says_that_there_is_nothing_to_resume(fit, monkeypatch):
    interrupt_in(monkeypatch, epoch=0, batch=1)
    outcome = fit()
    assert outcome.code == 130
    assert "no checkpoint to resume from" in outcome.out


def test_resuming_a_finished_run_says_so_and_lengthens_it_on_demand(fit, runs):
    assert fit("--trainer.max_epochs", "1").code == 0
    before = (runs / "digits/metrics.csv").read_bytes()
    finished = fit("--trainer.max_epochs", "1", "--resume", "auto", "--test", "true")
    assert finished.code == 0, finished.err
    assert "nothing to train" in finished.out and "test/top1" in finished.out
    assert (runs / "digits/metrics.csv").read_bytes() == before
    longer = fit("--resume", runs / "digits/checkpoints/last.ckpt", "--model.schedule", "onecycle")
    assert longer.code == 0, longer.err
    rows = rows_of(runs / "digits/metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3", "4", "5"]
    assert [path.name for path in runs.iterdir()] == ["digits"]


def test_auto_takes_the_newest_run_of_the_name(fit, runs):
    for _ in range(2):
        assert fit("--trainer.max_epochs", "1").code == 0
    (runs / "digits-3").mkdir()  # a run that never wrote a checkpoint
    assert f"{runs}/digits-2/checkpoints/last.ckpt" in fit("--resume", "auto").out


def test_a_failing_logger_does_not_stop_training(fit, monkeypatch):
    from pytorch_lightning.loggers.csv_logs import ExperimentWriter

    def full_disk(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ExperimentWriter, "save", full_disk)
    with pytest.warns(UserWarning, match="MetricsCSV failed, training goes on.*No space left") as caught:
        outcome = fit("--trainer.max_epochs", "1")
    assert outcome.code == 0, outcome.err
    assert len([w for w in caught if "MetricsCSV" in str(w.message)]) == 1


def test_an_offline_wandb_run_lies_in_the_run_folder_and_is_continued(fit, runs, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    outcome = fit("--wandb.mode", "auto", "--trainer.max_epochs", "1")
    assert outcome.code == 0, outcome.err
    assert "W&B: offline (no API key)" in outcome.out
    assert fit("--wandb.mode", "offline", "--resume", "auto").code == 0
    run_id = (runs / "digits/wandb/run-id").read_text()
    offline = sorted(path.name for path in (runs / "digits/wandb").glob("offline-run-*"))
    assert offline and all(name.endswith(run_id) for name in offline)
    assert not (REPOSITORY / "wandb").exists()


def test_sigint_to_the_process_keeps_the_last_checkpoint(tmp_path, small):
    args = [
        "--config",
        DIGITS,
        "--config",
        small,
        "--runs_dir",
        tmp_path / "runs",
        "--trainer.max_epochs",
        "999",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.classification", "fit", *map(str, args)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    last = tmp_path / "runs/classification/digits/checkpoints/last.ckpt"
    try:
        deadline = time.monotonic() + 120
        while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert f"--resume {last}" in out
    assert load(last)["epoch"] >= 0
