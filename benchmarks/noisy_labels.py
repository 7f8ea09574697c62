"""Accuracy under label noise by method and normalizer over seeds: runs of the suite, gathered in tables.

    python -m benchmarks.noisy_labels [--methods ce gce elr co_teaching divide_mix] [--norms bn sn en]
        [--rates 0 0.4] [--seeds 0 1 2] [--kind symmetric|pair] [--config conf/noisy_labels/….yaml]

Every run is the task's own command line with the same configuration and number of epochs; methods with two
networks compute two (Co-teaching) to five times as much (DivideMix). The seed is that of the run and of the
noise. First the learning rate of each method is chosen among three, by the best validation accuracy of one
run with bn, noise of the highest rate and another seed. Co-teaching is told the rate of the noise.

Writes results/noisy_labels.json after each run, so that an interrupted series goes on, and after each rate
the tables into docs/noisy_labels.md. Another configuration, kind of noise or tuning starts anew.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.document import replace_between
from benchmarks.measure import RESULTS, machine
from benchmarks.noisy_labels_tables import BEST, LAST, NOISE, TEST, Row, report
from tasks.whole_file import whole_file

METHODS: dict[str, list[str]] = {
    "ce": [],
    "gce": ["--model.loss_options.q", "0.7"],
    "elr": ["--model.loss_options.beta", "0.7", "--model.loss_options.strength", "3"],
    "co_teaching": [
        "--model.loss_options.forget_rate",
        "{rate}",
        "--model.loss_options.gradual_epochs",
        "10",
    ],
    "divide_mix": [],
}
"""Options of each method: those of its paper; the epochs of a change cut to the short runs."""
LEARNING_RATES = ["0.05", "0.025", "0.1"]
"""What is tried for each method; of equally good ones the first is taken."""
TUNING_NORM, TUNING_SEED = "bn", 100
RESULT = RESULTS / "noisy_labels.json"
DOCS = Path(__file__).parents[1] / "docs" / "noisy_labels.md"
BEGIN, END = "<!-- study: python -m benchmarks.noisy_labels -->\n", "<!-- end of the study -->\n"


def main() -> None:
    """Tune, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="conf/noisy_labels/digits_study.yaml")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--norms", nargs="+", default=["bn", "sn", "en"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.4, 0.0])
    parser.add_argument("--kind", choices=["symmetric", "pair"], default="symmetric")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/study"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare()
    study = Study(args.config, args.kind, max(args.rates), args.runs_dir)
    for method in args.methods:
        study.tune(method)
    for rate in args.rates:
        for seed in args.seeds:
            for method in args.methods:
                for norm in args.norms:
                    study.run(method, norm, rate, seed)
        told = report(study.result)
        write_docs(told)
    print(f"\n{told}\n\nwritten: {RESULT}, {DOCS}")


class Study:
    """The runs of one configuration.

    Args:
        config: Configuration of the task.
        kind: Kind of noise.
        rate: Its rate for tuning.
        runs_dir: Parent of the run folders.

    Attributes:
        result: What is written: the machine, the settings, the rows of the tuning and of the runs.
    """

    def __init__(self, config: str, kind: str, rate: float, runs_dir: Path) -> None:
        settings = {
            "config": config,
            "configuration": yaml.safe_load(Path(config).read_text(encoding="utf-8")),
            "kind": kind,
            "options": METHODS,
            "tuned": {"rate": rate, "norm": TUNING_NORM, "seed": TUNING_SEED, "lr": LEARNING_RATES},
        }
        settings = json.loads(json.dumps(settings))
        before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        if any(before.get(name) != value for name, value in settings.items()):
            before = {}
        self.runs_dir, self.config, self.kind, self.rate = runs_dir, config, kind, rate
        self.result: dict[str, Any] = {
            "machine": machine(),
            **settings,
            "chosen": before.get("chosen", {}),
            "tuning": before.get("tuning", []),
            "rows": before.get("rows", []),
        }

    def tune(self, method: str) -> None:
        """Choose the learning rate of a method."""
        for lr in LEARNING_RATES:
            key = {"method": method, "lr": lr}
            if not any(key.items() <= row.items() for row in self.result["tuning"]):
                measured = self.measure(method, TUNING_NORM, self.rate, TUNING_SEED, lr, test=False)
                self.add("tuning", {**key, **measured})
        tried = [row for row in self.result["tuning"] if row["method"] == method]
        best = max(tried, key=lambda row: (row[BEST], -LEARNING_RATES.index(row["lr"])))
        self.result["chosen"][method] = best["lr"]

    def run(self, method: str, norm: str, rate: float, seed: int) -> None:
        """Train and test once, if it has not been done."""
        key = {"method": method, "norm": norm, "rate": rate, "seed": seed}
        if not any(key.items() <= row.items() for row in self.result["rows"]):
            lr = self.result["chosen"][method]
            self.add("rows", {**key, **self.measure(method, norm, rate, seed, lr, test=True)})

    def measure(self, method: str, norm: str, rate: float, seed: int, lr: str, *, test: bool) -> Row:
        """Metrics of one run, and its wall time."""
        name = f"{method}-{norm}-noise{rate:g}-seed{seed}-lr{lr}"
        folder = self.runs_dir / "noisy_labels" / name
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run, or of another configuration
        line = [
            "fit", "--config", self.config, "--model.method", method, "--model.norm", norm,
            "--data.noise.kind", self.kind if rate else "none", "--data.noise.rate", str(rate),
            "--data.noise.seed", str(seed), "--seed_everything", str(seed), "--name", name,
            "--runs_dir", str(self.runs_dir), "--test", str(test).lower(), "--wandb.mode", "disabled",
            "--model.lr", lr, *(option.format(rate=rate) for option in METHODS[method]),
        ]  # fmt: skip
        start = time.perf_counter()
        in_a_process(line, self.runs_dir / f"{name}.log")
        return {**metrics_of(folder / "metrics.csv"), "seconds": round(time.perf_counter() - start, 1)}

    def add(self, table: str, row: Row) -> None:
        """Keep a row, in the file too."""
        self.result[table].append(row)
        print(table, " ".join(f"{k}={v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))
        sys.stdout.flush()
        with whole_file(RESULT) as file:
            file.write(json.dumps(self.result, indent=1, ensure_ascii=False) + "\n")


def prepare() -> None:
    """Import what the runs need once: each is a fork of this process."""
    for name in ("sklearn.metrics", "sklearn.mixture", "timm", "tasks.cli", "tasks.noisy_labels.module"):
        import_module(name)
    RESULTS.mkdir(exist_ok=True)


def in_a_process(line: list[str], log: Path) -> None:
    """Run a command line of the task in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_command, args=(line, log))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{' '.join(line)}: exit code {process.exitcode}, see {log}")


def _command(line: list[str], log: Path) -> None:
    import tasks.report.run
    from tasks.noisy_labels.__main__ import main as noisy_labels

    tasks.report.run.write_report = lambda *_: None  # a fifth of the time
    sys.argv = sys.argv[:1]  # Lightning looks at it
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        noisy_labels(line)


def metrics_of(path: Path) -> Row:
    """What the tables need of a run's `metrics.csv`."""
    series: dict[str, list[float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    series.setdefault(name, []).append(float(value))
    accuracies = series["val/top1"]
    last = {name: series[name][-1] for name in (TEST, *NOISE) if name in series}
    return {BEST: max(accuracies), LAST: accuracies[-1], **last}


def write_docs(text: str) -> None:
    """Put the tables between their marks in the documentation."""
    replace_between(DOCS, BEGIN, END, f"\n{text}\n\n")


if __name__ == "__main__":
    main()
