"""Real comparisons on a few digits: in parallel, and interrupted in the middle and resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from task_paths import DIGITS, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LIMITS = [
    "--trainer.max_epochs",
    "4",
    "--trainer.limit_train_batches",
    "3",
    "--trainer.limit_val_batches",
    "1",
]
LIMITS += ["--trainer.limit_test_batches", "2", "--trainer.num_sanity_val_steps", "0"]
LIMITS += ["--data.batch_size", "16", "--data.image_size", "16"]


def start(folder, *args):
    """A comparison of two normalizers and two seeds, as a process whose output is in `folder`/said."""
    line = [sys.executable, "-m", "tasks.compare", "--config", str(DIGITS), "--norms", "bn", "en"]
    line += ["--seeds", "0", "1", "--runs_dir", str(folder), "--name", "few", *LIMITS, *args]
    folder.mkdir(exist_ok=True)
    with (folder / "said").open("w") as file:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(line, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, env=environment)


def run(folder, *args):
    """The exit code and what was said."""
    code = start(folder, *args).wait()
    return code, (folder / "said").read_text()


def outcome(folder):
    """Test and best validation metric of every run."""
    tree = json.loads((folder / "compare" / "few" / "compare.json").read_text())
    runs = [one for norm in tree["norms"].values() for one in norm["runs"]]
    return {(r["run"]["norm"], r["run"]["seed"]): (r["test"], r["best"], r["curve"]["values"]) for r in runs}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "runs"
    code, said = run(folder)
    assert code == 0, said
    return folder


def test_two_normalizers_and_two_seeds(whole):
    values = outcome(whole)
    assert values.keys() == {(norm, seed) for norm in ("bn", "en") for seed in (0, 1)}
    assert all(len(curve) == 4 and max(curve) == best for _, best, curve in values.values())
    few = whole / "compare" / "few"
    for norm, seed in values:
        folder = few / "classification" / f"{norm}-seed{seed}"
        facts = json.loads((folder / "summary.json").read_text())
        assert values[norm, seed][0] == facts["test"]["test/top1"] and facts["norm"] == norm
        assert (folder / "report.html").is_file() and not (folder / "wandb").exists()
    page = (few / "index.html").read_text()
    assert "could not be drawn" not in page and page.count("<svg") == 2
    code, said = run(whole)  # nothing is left to run
    assert code == 0 and "4 runs, 4 of them finished before" in said
    assert outcome(whole) == values
    code, said = run(whole, "--model.lr", "0.05")
    assert code == 2 and "model.lr was 0.1 and is now 0.05" in said


def test_an_interrupted_comparison_goes_on(whole, tmp_path):
    folder = tmp_path / "runs"
    process = start(folder, "--jobs", "1")
    try:
        metrics = folder / "compare" / "few" / "classification" / "bn-seed0" / "metrics.csv"
        end = time.monotonic() + 600
        while not (metrics.parent / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < end, (folder / "said").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        code = process.wait()
    finally:
        process.kill()
    said = (folder / "said").read_text()
    assert code == 130 and "Traceback" not in said, said
    assert "interrupted: what is there is kept; go on with\n  python -m tasks.compare --config" in said
    assert not (folder / "compare" / "few" / "classification" / "en-seed1").exists()
    code, said = run(folder)
    assert code == 0, said
    # What was interrupted, and what ran alone, ends as what ran whole beside another: to the last bit.
    assert outcome(folder) == outcome(whole)
