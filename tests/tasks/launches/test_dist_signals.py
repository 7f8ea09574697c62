"""Signals that ask real launches to stop: the run is saved, and ends later as if nothing had been."""

import os
import signal
import stat

import pytest
from processes import free_port
from small_fits import EPOCH, assert_equal_runs, fit, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECOND_EPOCH = EPOCH + 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_launch_that_is_told_to_stop_saves_within_the_epoch(folder, whole, started, paused, workers):
    """torchrun hands the signal to whole process groups, the loaders among them."""
    pause, name = paused(SECOND_EPOCH), f"stopped-{workers}"
    line = launch(folder, name, "--data.num_workers", workers)
    process = started(line, folder / f"{name}.log", **pause.variables)
    process.wait_for(pause.reached)
    process.popen.terminate()
    process.wait_for(lambda: process.text.count("closing signal SIGTERM") == 2)
    pause.go()
    assert process.finish() == 128 + signal.SIGTERM, process.text
    assert "stopped by SIGTERM in epoch 2" in process.text
    again = started([*line, "--resume", "auto"], folder / f"{name}-again.log")
    assert again.finish() == 0, again.text
    assert "batches of the next" in again.text
    assert_equal_runs(folder, name, whole)


@pytest.fixture
def scontrol(tmp_path):
    """A stand-in for SLURM's command: its folder, and the file of what it was asked."""
    command, asked = tmp_path / "bin/scontrol", tmp_path / "asked"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command.parent, asked


def test_a_slurm_job_saves_before_its_limit_is_requeued_and_goes_on(folder, whole, started, paused, scontrol):
    tools, asked = scontrol

    def job(turn, **variables):
        common = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_NTASKS": 2,
            "SLURM_NTASKS_PER_NODE": 1,
            "SLURM_NNODES": 2,
            "SLURM_JOB_ID": 4321,
            "SLURM_JOB_NAME": "en",
            "SLURM_STEP_ID": 0,
            "SLURM_NODELIST": "127.0.0.1,127.0.0.2",
            "SLURM_LOCALID": 0,
            "MASTER_PORT": free_port(),
        }
        task, *rest = fit(folder, "slurm")
        return [
            started(
                [f"tasks.{task}", *rest],
                folder / f"slurm-{turn}-{rank}.log",
                **common,
                **variables,
                SLURM_PROCID=rank,
                SLURM_NODEID=rank,
            )
            for rank in range(2)
        ]

    pause = paused(SECOND_EPOCH)
    first, second = job("first", **pause.variables)
    first.wait_for(pause.reached)
    for process in (first, second):
        process.popen.send_signal(signal.SIGUSR1)
    pause.go()
    assert [first.finish(), second.finish()] == [138, 138], first.text + second.text
    assert "stopped by SIGUSR1 in epoch 2" in first.text and "job 4321 is requeued" in first.text
    assert asked.read_text() == "requeue 4321\n"  # once, by rank 0
    first, second = job("requeued")
    assert [first.finish(), second.finish()] == [0, 0], first.text + second.text
    assert "resuming" in first.text
    assert_equal_runs(folder, "slurm", whole)
