"""Processes and machines that die: what stops, and what goes on and ends as if nothing had been."""

import os
import signal

import pytest
from processes import free_port
from small_fits import EPOCH, assert_equal_runs, launch, run_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECOND_EPOCH = EPOCH + 4


def test_one_run_on_two_processes(folder, undisturbed):
    text = undisturbed.text
    assert text.count("learning rate 0.1: global batch 48 = 24 images × 2 processes × 1") == 1
    assert "batch statistics over all processes" in text
    files = {path.name for path in run_of(folder, "whole").iterdir()}
    assert {"metrics.csv", "config.yaml", "checkpoints"} <= files and "launch" not in files


def test_a_killed_process_is_started_again_and_the_run_ends_as_one_without(folder, whole, started, paused):
    pause = paused(SECOND_EPOCH)
    line = launch(folder, "killed", "--wandb.mode", "offline")
    process = started(line, folder / "killed.log", **pause.variables)
    process.wait_for(pause.reached)
    os.kill(process.workers()[1], signal.SIGKILL)
    pause.go()
    assert process.finish() == 0, process.text
    assert "after epoch 1" in process.text
    assert sorted(path.name for path in run_of(folder, "").glob("killed*")) == ["killed"]
    assert_equal_runs(folder, "killed", whole)
    # One run of W&B, by rank 0, which goes on in the second start.
    parts = [path.name for path in run_of(folder, "killed").glob("wandb/offline-run-*")]
    assert len(parts) == 2 and len({name.rpartition("-")[2] for name in parts}) == 1


@pytest.fixture
def machine(folder, started):
    """machine(rank, name, …) as the agent of one of two machines."""
    port = free_port()

    def start(rank, name, restarts, timeout, **variables):
        place = ["--nodes", 2, "--node_rank", rank, "--master_addr", "127.0.0.1", "--master_port", port]
        place += ["--local_addr", "127.0.0.1", "--max_restarts", restarts, "--timeout", timeout]
        line = launch(folder, name, processes=1, machine=place)
        return started(line, folder / f"{name}-{rank}.log", **variables)

    return start


def test_a_lost_machine_comes_back_and_the_run_ends_as_one_without(folder, whole, machine, paused):
    pause = paused(SECOND_EPOCH)
    first, second = (machine(rank, "lost", 3, 600, **pause.variables) for rank in (0, 1))
    first.wait_for(pause.reached)
    second.kill()
    pause.go()
    first.wait_for("another process of this run is gone")
    third = machine(1, "lost", 3, 600)
    assert first.finish() == 0, first.text + third.text
    assert third.finish() == 0, third.text
    assert "after epoch 1" in first.text + third.text
    assert_equal_runs(folder, "lost", whole)


def test_without_restarts_a_lost_machine_ends_the_run_with_a_line(machine, paused):
    pause = paused(SECOND_EPOCH)
    first, second = (machine(rank, "ended", 0, 600, **pause.variables) for rank in (0, 1))
    first.wait_for(pause.reached)
    second.kill()
    pause.go()
    assert first.finish() == 2, first.text
    assert "another process of this run is gone or does not answer" in first.text
    assert "error: machine 0 of 2: process 0 left with 2" in first.text


def test_a_machine_that_never_comes_is_named_within_the_timeout(machine):
    first = machine(0, "alone", 0, 5)
    assert first.finish() == 2, first.text
    assert "machine 0 of 2: the others did not come to 127.0.0.1:" in first.text
    assert "Traceback" not in first.text
