"""A stand-in for the task, which leaves at once what a run leaves, and ends as its normalizer says."""

import json
import stat
import sys

from tasks.compare import pool

# bn and en wait for each other; sn diverges; gn crashes at first, ln always; in refuses its input.
TASK = """#!{python}
import json, os, sys, time
from pathlib import Path

after = dict(zip(sys.argv, sys.argv[1:]))
norm, seed, runs = after["--model.norm"], int(after["--seed_everything"]), Path(after["--runs_dir"])
folder = runs / "classification" / after["--name"]
tries = runs / "tries" / after["--name"]
tries.parent.mkdir(exist_ok=True)
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
tries.with_suffix(".json").write_text(json.dumps([sys.argv, os.environ["OMP_NUM_THREADS"]]))
if norm == "in":
    print("error: no such option", flush=True)
    sys.exit(2)
folder.mkdir(parents=True)
if norm in "bn en":
    other = runs / "tries" / f"{{'en' if norm == 'bn' else 'bn'}}-seed{{seed}}"
    end = time.monotonic() + 120
    while not other.exists():
        assert time.monotonic() < end, "the other was not started beside this one"
        time.sleep(0.01)
if norm == "ln" or (norm == "gn" and tries.read_text() == "x"):
    print("epoch 1\\nTraceback of the crash\\n  last words of", norm, flush=True)
    sys.exit(1)
(folder / "config.yaml").write_text("trainer: {{}}\\ndata: {{batch_size: 64}}\\n")
loss = "nan" if norm == "sn" else "0.5"
rows = [f"{{e}},{{10 * e + 9}},{{loss}},{{0.5 + 0.1 * e + 0.001 * seed}}," for e in range(3)]
rows.append(f"3,30,,,{{0.6 + 0.01 * seed}}")
(folder / "metrics.csv").write_text("\\n".join(["epoch,step,val/loss,val/top1,test/top1", *rows]) + "\\n")
(folder / "report.html").write_text("report")
shift = {{"bn": 0, "en": 0.05, "sn": -0.3, "gn": 0.002 * (-1) ** seed}}.get(norm, 0)
summary = dict(task="classification", name=folder.name, monitor="val/top1", best=0.7, epochs=3, seconds=9.0,
               test={{"test/top1": 0.8 + shift + 0.01 * seed}}, parameters=1000, processes=1,
               images_per_second=640.0)
(folder / "summary.json").write_text(json.dumps(summary))
"""


def stand_in(tmp_path, monkeypatch):
    """Let comparisons start the stand-in in place of Python, and look at it often."""
    program = tmp_path / "python"
    program.write_text(TASK.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(pool.sys, "executable", str(program))
    monkeypatch.setattr(pool, "_POLL_SECONDS", 0.02)


def started(folder, run):
    """(times that a run was started, its last command line, the threads that its environment allows)."""
    tries = folder / "tries"
    if not (tries / run).exists():
        return 0, [], None
    line, threads = json.loads((tries / f"{run}.json").read_text())
    return len((tries / run).read_text()), line[1:], threads
