"""Several processes and several machines on loopback: what dies there, and what goes on."""

import csv
import os
import shutil
import signal
import stat
import subprocess

import pytest
import torch
import yaml
from curve_jobs import NORMS
from launches import Process, free_port
from task_paths import DIGITS, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {
    "trainer": {
        "max_epochs": 3,
        "limit_train_batches": 12,
        "limit_val_batches": 1.0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    },
    "model": {"norm": "en", "sync": True},
    "data": {"batch_size": 24, "image_size": 16},
    "wandb": {"mode": "disabled"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launches")
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "runs_dir": str(folder / "runs")}))
    return folder


@pytest.fixture
def started():
    """start(…) as Process, killed in the end."""
    processes = []
    yield lambda *args, **kwargs: processes.append(Process(*args, **kwargs)) or processes[-1]
    for process in processes:
        process.kill()


def fit(folder, name, *options):
    files = ["--config", DIGITS, "--config", folder / "small.yaml"]
    return ["classification", "fit", *files, "--name", name, *options]


def launch(folder, name, *options, processes=2, machine=()):
    return ["tasks.launch", "--processes", processes, *machine, *fit(folder, name, *options)]


def run_of(folder, name):
    return folder / "runs/classification" / name


def outcome(folder, name):
    """Rows of the metrics and the last weights."""
    with (run_of(folder, name) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    state = torch.load(run_of(folder, name) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return rows, state


def assert_equal_runs(folder, left, right):
    """Equal to the last bit: two ranks' sums do not depend on their order."""
    (rows, state), (other_rows, other) = outcome(folder, left), outcome(folder, right)
    assert rows == other_rows
    assert all(torch.equal(state[key], other[key]) for key in other)


@pytest.fixture(scope="module")
def whole(folder):
    """Name of a run on two processes that nothing disturbed."""
    process = Process(launch(folder, "whole", "--test", "true"), folder / "whole.log")
    assert process.finish() == 0, process.text
    assert process.text.count("learning rate 0.1: global batch 48 = 24 images × 2 processes × 1") == 1
    assert "batch statistics over all processes" in process.text
    files = {path.name for path in run_of(folder, "whole").iterdir()}
    assert {"metrics.csv", "config.yaml", "checkpoints"} <= files and "launch" not in files
    return "whole"


def test_a_killed_process_is_started_again_and_the_run_ends_as_one_without(folder, whole, started):
    process = started(launch(folder, "killed", "--test", "true"), folder / "killed.log")
    process.wait_for("epoch 1/3")
    os.kill(process.workers()[1], signal.SIGKILL)
    assert process.finish() == 0, process.text
    assert "after epoch 1" in process.text
    assert sorted(path.name for path in (folder / "runs/classification").glob("killed*")) == ["killed"]
    assert_equal_runs(folder, "killed", whole)


def test_a_launch_that_is_told_to_stop_saves_within_the_epoch(folder, whole, started):
    process = started(launch(folder, "stopped", "--test", "true"), folder / "stopped.log")
    process.wait_for("epoch 1/3")
    steps = run_of(folder, "stopped") / "metrics.csv"
    process.wait_for(lambda: len(steps.read_text().splitlines()) > 15)
    process.popen.terminate()
    assert process.finish() == 128 + signal.SIGTERM, process.text
    assert "stopped by SIGTERM in epoch" in process.text
    again = started(launch(folder, "stopped", "--test", "true", "--resume", "auto"), folder / "again.log")
    assert again.finish() == 0, again.text
    assert "batches of the next" in again.text
    assert_equal_runs(folder, "stopped", whole)


def two_machines(folder, name, started, restarts, *options, timeout=60):
    """The two agents, machine 0 first."""
    port = free_port()

    def machine(rank):
        place = ["--nodes", 2, "--node_rank", rank, "--master_addr", "127.0.0.1", "--master_port", port]
        place += ["--local_addr", "127.0.0.1", "--max_restarts", restarts, "--timeout", timeout]
        line = launch(folder, name, *options, processes=1, machine=place)
        return started(line, folder / f"{name}-{rank}.log")

    return machine


def test_a_lost_machine_comes_back_and_the_run_ends_as_one_without(folder, whole, started):
    machine = two_machines(folder, "lost", started, 3, "--test", "true", timeout=200)
    first, second = machine(0), machine(1)
    printing = [first, second]
    first.wait_for(lambda: any("epoch 1/3" in agent.text for agent in printing))
    second.kill()
    first.wait_for("another process of this run is gone")
    third = machine(1)
    assert first.finish() == 0, first.text + third.text
    assert third.finish() == 0, third.text
    assert "after epoch 1" in first.text + third.text
    assert_equal_runs(folder, "lost", whole)


def test_without_restarts_a_lost_machine_ends_the_run_with_a_line(folder, started):
    machine = two_machines(folder, "ended", started, 0)
    first, second = machine(0), machine(1)
    first.wait_for(lambda: "epoch 1/3" in first.text + second.text)
    second.kill()
    assert first.finish(100) == 2, first.text
    assert "another process of this run is gone or does not answer" in first.text
    assert "error: machine 0 of 2: process 0 left with 2" in first.text


def test_a_machine_that_never_comes_is_named_within_the_timeout(folder, started):
    first = two_machines(folder, "alone", started, 0, timeout=5)(0)
    assert first.finish(100) == 2, first.text
    assert "machine 0 of 2: the others did not come to 127.0.0.1:" in first.text
    assert "Traceback" not in first.text


@pytest.fixture(scope="module")
def worlds(folder):
    """What curve_jobs.py printed on 1, 2 and 3 processes."""
    printed = []
    for processes in (1, 2, 3):
        jobs = [REPOSITORY / "tests/tasks/curve_jobs.py", folder]
        line = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *jobs]
        process = Process(line, folder / f"world-{processes}.log", PYTHONPATH=REPOSITORY)
        assert process.finish(500) == 0, process.text
        printed.append(process.text)
    return printed


@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_curve_does_not_depend_on_the_number_of_processes(folder, worlds, norm):
    curves = []
    for processes in (1, 2, 3):
        rows, _ = outcome(folder, f"{norm}-{processes}")
        columns = ("train/loss", "val/loss", "val/top1")
        curves.append({c: [float(row[c]) for row in rows if row[c]] for c in columns})
    assert len(curves[0]["train/loss"]) == 24 and len(curves[0]["val/loss"]) == 2
    for other in curves[1:]:
        # In float64, sums in another order differ by 1e-16; 24 steps of training made 7e-10 of it at most.
        assert other["train/loss"] == pytest.approx(curves[0]["train/loss"], rel=1e-8)
        assert other["val/loss"] == pytest.approx(curves[0]["val/loss"], rel=1e-8)
        assert other["val/top1"] == curves[0]["val/top1"]


def test_every_sample_is_tested_and_predicted_once_on_any_number_of_processes(folder, worlds):
    tables, tested = [], []
    for processes, printed in zip((1, 2, 3), worlds, strict=True):
        tested.append(next(line for line in printed.splitlines() if "test/top1" in line))
        with (folder / f"predictions-{processes}.csv").open(newline="") as file:
            tables.append([(row["sample"], row["predicted"], row["true"]) for row in csv.DictReader(file)])
    assert len(tables[0]) == len({sample for sample, _, _ in tables[0]}) == 359  # a fifth of 1,797 digits
    assert tables[1] == tables[0] and tables[2] == tables[0]
    right = sum(predicted == true for _, predicted, true in tables[0])
    assert all(f"{right / 359:.4f}" in line for line in tested)


def test_a_slurm_job_saves_before_its_limit_is_requeued_and_goes_on(folder, whole, started, tmp_path):
    asked = tmp_path / "asked"
    command = tmp_path / "bin/scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)

    def job(turn):
        common = {
            "PATH": f"{command.parent}:{os.environ['PATH']}",
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
        task, *rest = fit(folder, "slurm", "--test", "true")
        return [
            started(
                [f"tasks.{task}", *rest],
                folder / f"slurm-{turn}-{rank}.log",
                **common,
                SLURM_PROCID=rank,
                SLURM_NODEID=rank,
            )
            for rank in range(2)
        ]

    first, second = job("first")
    first.wait_for("epoch 1/3")
    for process in (first, second):
        process.popen.send_signal(signal.SIGUSR1)
    assert [first.finish(), second.finish()] == [138, 138], first.text + second.text
    assert "stopped by SIGUSR1" in first.text and "job 4321 is requeued" in first.text
    assert asked.read_text() == "requeue 4321\n"  # once, by rank 0
    first, second = job("requeued")
    assert [first.finish(), second.finish()] == [0, 0], first.text + second.text
    assert "resuming" in first.text
    assert_equal_runs(folder, "slurm", whole)


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them: (prefix of a command, address, interface) of each."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    names = [f"en{os.getpid()}{side}" for side in "ab"]
    for name in names:
        if subprocess.run(["ip", "netns", "add", name], check=False).returncode:
            pytest.skip("network namespaces are not permitted here")
    try:
        pair = ["type", "veth", "peer", "name", "cable", "netns", names[1]]
        ip("link", "add", "cable", "netns", names[0], *pair)
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield [(["ip", "netns", "exec", name], f"10.77.0.{n}") for n, name in enumerate(names, 1)]
    finally:
        for name in names:
            ip("netns", "delete", name)


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def test_two_hosts_with_a_network_between_them_train_as_two_processes_do(folder, whole, started, hosts):
    first = hosts[0][1]
    agents = []
    for rank, (prefix, address) in enumerate(hosts):
        place = ["--nodes", 2, "--node_rank", rank, "--master_addr", first, "--local_addr", address]
        line = launch(folder, "hosts", "--test", "true", processes=1, machine=place)
        log = folder / f"hosts-{rank}.log"
        agents.append(started(line, log, prefix=prefix, GLOO_SOCKET_IFNAME="cable"))
    assert [agent.finish() for agent in agents] == [0, 0], "".join(agent.text for agent in agents)
    assert "on 2 nodes" in "".join(agent.text for agent in agents)
    assert_equal_runs(folder, "hosts", whole)
