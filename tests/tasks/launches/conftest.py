"""What real launches share: a folder, an undisturbed run in it, processes that are killed in the end."""

import pytest
import yaml
from pausing import Paused
from processes import Process
from small_fits import SMALL, launch


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launches")
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "runs_dir": str(folder / "runs")}))
    return folder


@pytest.fixture
def started():
    """started(…) as Process, killed in the end."""
    processes = []
    yield lambda *args, **variables: processes.append(Process(*args, **variables)) or processes[-1]
    for process in processes:
        process.kill()


@pytest.fixture
def paused(tmp_path):
    """paused(step) as Paused."""
    return lambda step: Paused(tmp_path, step)


@pytest.fixture(scope="session")
def undisturbed(folder):
    """The launch of a run on two processes that nothing disturbs, once it is over."""
    process = Process(launch(folder, "whole"), folder / "whole.log")
    assert process.finish() == 0, process.text
    return process


@pytest.fixture
def whole(undisturbed):
    """Name of that run."""
    return "whole"
