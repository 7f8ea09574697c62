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


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment(**variables):
    """This environment without what a launcher left in it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    quiet = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**own, **quiet, **{name: str(value) for name, value in variables.items()}}


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

    def wait_for(self, told, seconds=240):
        """Wait until the output has `told`, or `told()` is true."""
        deadline = time.monotonic() + seconds
        while not (told() if callable(told) else told in self.text):
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def finish(self, seconds=280):
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
        children = f"/proc/{self.popen.pid}/task/{self.popen.pid}/children"
        for pid in map(int, Path(children).read_text().split()):
            parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            variables = dict(part.split(b"=", 1) for part in parts if b"=" in part)
            if b"LOCAL_RANK" in variables:
                found[int(variables[b"LOCAL_RANK"])] = pid
        return found

    def kill(self):
        """kill -9 the agent and its processes, as when a machine is switched off."""
        pids = [] if self.popen.poll() is not None else list(self.workers().values())
        for kill, pid in [(os.killpg, self.popen.pid), *((os.kill, pid) for pid in pids)]:
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.popen.wait()
