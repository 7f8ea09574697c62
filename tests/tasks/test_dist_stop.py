"""Stopping on a signal, going on from there, and checkpoints that a disk has spoiled; in one process."""

import errno
import os
import signal

import pytest
import torch
from run_files import rows_of
from sent_signals import signal_in
from test_task_runs import assert_same, load

from tasks.checkpoint_file import WholeCheckpoints
from tasks.classification.module import ClassificationModule
from tasks.errors import UserError
from tasks.lost import lost_processes
from tasks.resume import find_start
from tasks.run_folder import RunFolder
from tasks.samplers import EpochSampler
from tasks.world import World

WHOLE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, ()),
        (signal.SIGUSR1, ("--data.num_workers", "2", "--trainer.accumulate_grad_batches", "2")),
    ],
)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_there(
    fit, runs, monkeypatch, handlers, number, options
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    options = ("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "7", "--test", "true", *options)
    assert fit(*options, "--name", "whole").code == 0
    signal_in(monkeypatch, ClassificationModule, number, epoch=1, batch=2)
    stopped = fit(*options, "--name", "stopped")
    assert stopped.code == 128 + number, stopped.err
    last = runs / "stopped/checkpoints/last.ckpt"
    assert f"stopped by {number.name} in epoch 2" in stopped.out and f"--resume {last}" in stopped.out
    resumed = fit(*options, "--name", "stopped", "--resume", "auto")
    assert resumed.code == 0, resumed.err
    done = 4 if "2" in options[-1:] else 3  # with accumulation, the signal waits for the optimiser's step
    assert f"after epoch 1 and {done} batches of the next" in resumed.out
    assert rows_of(runs / "stopped/metrics.csv") == rows_of(runs / "whole/metrics.csv")
    whole, resumed = (load(runs / name / "checkpoints/last.ckpt") for name in ("whole", "stopped"))
    for part in WHOLE:
        assert_same(whole[part], resumed[part], part)


def test_a_signal_in_the_last_batch_waits_for_the_validation(fit, runs, monkeypatch, handlers):
    signal_in(monkeypatch, ClassificationModule, signal.SIGTERM, epoch=0, batch=2)
    stopped = fit()
    assert stopped.code == 143
    assert "after a whole epoch, step 3" in stopped.out
    assert [row["step"] for row in rows_of(runs / "digits/metrics.csv") if row["val/top1"]] == ["2"]
    resumed = fit("--resume", "auto")
    assert resumed.code == 0 and "after epoch 1\n" in resumed.out, resumed.err


def test_a_task_that_cannot_go_on_within_an_epoch_keeps_its_last_whole_one(fit, runs, monkeypatch, handlers):
    monkeypatch.setattr(ClassificationModule, "resumes_within_epoch", False)
    signal_in(monkeypatch, ClassificationModule, signal.SIGTERM, epoch=1, batch=0)
    assert fit().code == 143
    assert load(runs / "digits/checkpoints/last.ckpt")["epoch"] == 0
    assert "after epoch 1\n" in fit("--resume", "auto").out


def test_the_middle_of_an_epoch_is_of_one_batch_size(fit, monkeypatch, handlers):
    signal_in(monkeypatch, ClassificationModule, signal.SIGTERM, epoch=1, batch=1)
    assert fit().code == 143
    other = fit("--resume", "auto", "--data.batch_size", "16")
    assert other.code == 2
    assert "expected 1 processes × 32 images, which wrote this checkpoint in the middle" in other.err


def test_the_sampler_leaves_out_what_was_had_in_the_first_epoch_alone():
    for repeats in (1, 3):
        common = {"size": 23, "seed": 5, "rank": 1, "world_size": 2, "repeats": repeats}
        whole = EpochSampler(**common, epoch=2)
        rest = EpochSampler(**common, epoch=2, skip=4)
        assert list(rest) == list(whole)[4:] and len(rest) == len(whole) == 11
        whole.set_epoch(3)
        rest.set_epoch(3)
        assert list(rest) == list(whole)


@pytest.mark.parametrize("world", [2, 3])
def test_a_global_batch_holds_the_same_samples_on_any_number_of_processes(world):
    one = list(EpochSampler(100, seed=1, epoch=4))
    ranks = [list(EpochSampler(100, seed=1, epoch=4, rank=r, world_size=world)) for r in range(world)]
    batch = 12
    for start in range(0, 100 - batch, batch):
        share = slice(start // world, (start + batch) // world)
        assert sorted(one[start : start + batch]) == sorted(key for rank in ranks for key in rank[share])


# --- the disk


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    writer, path = WholeCheckpoints(), tmp_path / "checkpoints/last.ckpt"
    writer.save_checkpoint({"epoch": 1, "weight": torch.ones(3)}, path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*the one before it is intact"):
        writer.save_checkpoint({"epoch": 2}, path)
    assert load(path)["epoch"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    with pytest.raises(UserError, match="there is none from before"):
        writer.save_checkpoint({"epoch": 2}, path.with_name("best.ckpt"))


def test_a_disk_that_fills_up_ends_a_run_in_one_line_and_it_goes_on_later(fit, runs, monkeypatch):
    sync, calls = os.fsync, []

    def fills_up(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:  # best and last of the first epoch, best of the second, then its last
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    # A metric that improves in every epoch, so that the best is written each time.
    monkeypatch.setattr(ClassificationModule, "monitor", "epoch")
    full = fit()
    assert full.code == 2, full.err
    last = runs / "digits/checkpoints/last.ckpt"
    assert f"{last} cannot be written (No space left on device): the one before it is intact" in full.err
    assert load(last)["epoch"] == 0
    resumed = fit("--resume", "auto")
    assert resumed.code == 0 and "after epoch 1\n" in resumed.out, resumed.err


def test_a_checkpoint_cut_short_is_replaced_by_the_best(fit, runs):
    assert fit("--trainer.max_epochs", "1").code == 0
    last, best = (runs / f"digits/checkpoints/{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    resumed = fit("--resume", "auto")
    assert resumed.code == 0, resumed.err
    assert f"{last} is not a checkpoint, or one cut short" in resumed.err
    assert f"going on from {best} in its place" in resumed.err
    assert load(last)["epoch"] == 1
    for path in (last, best):
        path.write_bytes(b"PK")
    broken = fit("--resume", "auto")
    assert broken.code == 2 and "no checkpoint of the run can be read" in broken.error


# --- processes that are gone


@pytest.mark.parametrize(
    "told", ["[/x/gloo/tcp/pair.cc:5] Connection closed", "Application timeout caused pair closure"]
)
def test_gloo_speaks_of_other_processes(told):
    with pytest.raises(UserError, match="another process of this run is gone"), lost_processes():
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="shapes"), lost_processes():
        raise RuntimeError("shapes differ")


# --- the folder of a launch


def test_a_launch_finds_its_own_folder_and_no_other(tmp_path):
    old = RunFolder.claim(tmp_path, "run")
    old.begin("monday")
    own = RunFolder.claim(tmp_path, "run")
    own.begin("tuesday")
    RunFolder.claim(tmp_path, "run").begin(None)
    assert find_start(tmp_path, "run", None, "tuesday") == (own, None)
    assert find_start(tmp_path, "run", "auto", "tuesday") == (own, None)
    assert find_start(tmp_path, "run", None, "wednesday") == (None, None)
    assert find_start(tmp_path, "other", None, "tuesday") == (None, None)
    own.end()
    assert find_start(tmp_path, "run", None, "tuesday") == (None, None)


def test_processes_that_are_started_again_go_on_in_their_folder(fit, runs, monkeypatch):
    monkeypatch.setattr("tasks.cli.launched", lambda: World("srun", 1, 1, "job"))
    assert fit("--trainer.max_epochs", "1").code == 0
    assert not (runs / "digits/launch").exists()  # it has ended: the next is another run
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "end", lambda self: None)  # as if killed
        assert fit("--trainer.max_epochs", "1").code == 0
    again = fit("--trainer.max_epochs", "2")
    assert again.code == 0 and f"resuming {runs}/digits-2/checkpoints/last.ckpt after epoch 1" in again.out
    assert sorted(path.name for path in runs.iterdir()) == ["digits", "digits-2"]
