"""Loader processes under signals to the group of the training process, as torchrun and SLURM send them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from task_paths import REPOSITORY

JOB = """
import os, signal, subprocess, sys
from torch.utils.data import DataLoader
from tasks.loader_signals import outlive_signals

os.setpgid(0, 0)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
options = {"num_workers": 2, "persistent_workers": True, "worker_init_fn": outlive_signals}
loader = DataLoader(range(40), batch_size=2, **options)
batches = iter(loader)
seen = [next(batches), next(batches)]  # both loaders are at work
subprocess.run(["kill", "-s", sys.argv[1], "--", f"-{os.getpgid(0)}"], process_group=0, check=True)
seen += list(batches)
print(sum(int(batch.sum()) for batch in seen))
workers = [worker.pid for worker in loader._iterator._workers]
if sys.argv[2] == "terminated":
    for worker in loader._iterator._workers:
        worker.terminate()
        worker.join(60)
        assert worker.exitcode == 0, worker.exitcode
print(*workers)
"""


@pytest.mark.parametrize("end", ["left", "terminated"])
@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_loaders_go_on_and_end_with_their_parent(name, end):
    line = [sys.executable, "-c", JOB, name, end]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    total, workers = done.stdout.splitlines()
    assert int(total) == sum(range(40))
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers.split()):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
