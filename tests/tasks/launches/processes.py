"""Real launches of a task's command line: several processes, several machines on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from task_paths import REPOSITORY

LAUNCHERS = ("TORCHELASTIC", "SLURM_", "PET_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_")
PATHS = os.pathsep.join(map(str, (REPOSITORY, *Path(__file__).parents[:2])))
PATIENCE = 900
"""Seconds after which something that is waited for counts as hung; a busy machine is many times slower."""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment(**variables):
    """This environment without what a launcher left in it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    quiet = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**own, **quiet, "PYTHONPATH": PATHS, **{name: str(value) for name, value in variables.items()}}


class Process:
    """A process in a group of its own, whose output is read from a file while it runs."""

    def __init__(self, line, log, prefix=(), **variables):
        self.log = log
        with log.open("w") as output:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, "-m", *map(str, line)],
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(**variables),
                start_new_session=True,
            )

    @property
    def text(self):
        return self.log.read_text()

    def wait_for(self, told, seconds=PATIENCE):
        """Wait until the output has `told`, or `told()` is true."""
        deadline = time.monotonic() + seconds
        while not (told() if callable(told) else told in self.text):
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def finish(self, seconds=PATIENCE):
        """The exit code."""
        try:
            return self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text) from None
        finally:
            self.kill()

    def workers(self):
        """The processes that train, by the rank on their machine."""
        found = {}
        for pid in children(self.popen.pid):
            rank = variables_of(pid).get("LOCAL_RANK")
            if rank is not None:
                found[int(rank)] = pid
        return found

    def kill(self):
        """kill -9 the agent and its processes, as when a machine is switched off."""
        pids = [] if self.popen.poll() is not None else list(self.workers().values())
        for kill, pid in [(os.killpg, self.popen.pid), *((os.killpg, pid) for pid in pids)]:
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.popen.wait()


def children(pid):
    """The processes that a process started and that have not ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return []


def variables_of(pid):
    """The environment that a process was started with."""
    try:
        parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(os.fsdecode(part).split("=", 1) for part in parts if b"=" in part)


def torchrun(nodes, job, log):
    """torchrun's agents of so many machines on loopback, one process on each, machine 0 first."""
    port = free_port()
    common = [f"--nnodes={nodes}", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [
        Process(
            ["torch.distributed.run", *common, f"--node-rank={rank}", *job],
            log.with_name(f"{log.name}-{rank}.log"),
        )
        for rank in range(nodes)
    ]


def finish_all(processes):
    """Wait until all have ended well; the first that has not ends the others."""
    deadline = time.monotonic() + PATIENCE
    try:
        while any(process.popen.poll() is None for process in processes):
            for process in processes:
                assert process.popen.poll() in (None, 0), process.text
            assert time.monotonic() < deadline, "".join(process.text for process in processes)
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    assert all(process.popen.returncode == 0 for process in processes), processes[0].text
