"""A file system that is full when a checkpoint is due: a small one in memory, where mounting is permitted."""

import os
import subprocess

import pytest
from small_fits import EPOCH, fit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path):
    """Write until there is no room for a byte."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on_once_there_is_room(
    folder, disk, started, paused, tmp_path
):
    task, *line = fit(folder, "full", "--runs_dir", disk)
    pause = paused(EPOCH + 4)
    process = started([f"tasks.{task}", *line], tmp_path / "full.log", **pause.variables)
    process.wait_for(lambda: pause.reached(1))
    checkpoints = disk / task / "full/checkpoints"
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    fill(disk / "filler")
    pause.go()
    assert process.finish() == 2, process.text
    told = ".ckpt cannot be written (No space left on device): the one before it is intact; make room"
    assert told in process.text and "Traceback" not in process.text
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before
    assert set(before) == {"best.ckpt", "last.ckpt"}
    (disk / "filler").unlink()
    again = started([f"tasks.{task}", *line, "--resume", "auto"], tmp_path / "again.log")
    assert again.finish() == 0, again.text
    assert "after epoch 1" in again.text and "test/top1" in again.text
