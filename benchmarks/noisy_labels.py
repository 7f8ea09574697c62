"""Test accuracy under label noise by method and normalizer over seeds: runs of the suite, gathered in tables.

    python -m benchmarks.noisy_labels [--methods ce gce elr co_teaching divide_mix] [--norms bn sn en]
        [--rates 0 0.4] [--seeds 0 1 2] [--config conf/noisy_labels/….yaml] [--epochs N]

Every run is a call of the task's own command line with the same configuration and the same number of epochs;
methods with two networks compute about twice as much (Co-teaching) or more (DivideMix). A run that has its
result is not repeated, so that an interrupted series goes on. The seed is that of the run and of the noise.
Prints test accuracy of the best and validation accuracy of the last epoch, mean ± standard deviation over the
seeds, and how well wrong labels are found; writes results/noisy_labels.json.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.measure import markdown, write_result

TEST, LAST = "test/top1", "val/top1"
NOISE = ("train/memorised", "train/noise_auroc_suspects", "train/noise_auroc_loss", "train/noise_auroc_ratio")
DEFAULTS: dict[str, list[str]] = {
    "co_teaching": ["--model.loss_options.forget_rate", "{rate}"],
    "divide_mix": ["--model.loss_options.warm_up", "5"],
}
"""Options of methods that are not their defaults."""


def run(args: argparse.Namespace, method: str, norm: str, rate: float, seed: int) -> dict[str, Any]:
    """Train and test once; the last value of each metric and the wall time of the command."""
    name = f"{Path(args.config).stem}-{method}-{norm}-noise{rate:g}-seed{seed}"
    folder = args.runs_dir / "noisy_labels" / name
    start = time.perf_counter()
    if TEST not in metrics_of(folder):
        kind = "symmetric" if rate else "none"
        command = [
            sys.executable, "-m", "tasks.noisy_labels", "fit", "--config", args.config,
            "--model.method", method, "--model.norm", norm,
            "--data.noise.kind", kind, "--data.noise.rate", str(rate),
            "--data.noise.seed", str(seed), "--seed_everything", str(seed), "--name", name,
            "--runs_dir", str(args.runs_dir), "--resume", "auto", "--test", "true",
            "--wandb.mode", "disabled",
            *(option.format(rate=rate) for option in DEFAULTS.get(method, [])),
            *(["--trainer.max_epochs", str(args.epochs)] if args.epochs else []),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = metrics_of(folder)
    if TEST not in metrics:
        raise RuntimeError(f"{folder / 'metrics.csv'}: expected a row with {TEST}, found none")
    kept = {metric: metrics[metric] for metric in (TEST, LAST, *NOISE) if metric in metrics}
    row = {"method": method, "norm": norm, "rate": rate, "seed": seed, **kept}
    return {**row, "seconds": time.perf_counter() - start}


def metrics_of(folder: Path) -> dict[str, float]:
    """The last value of each metric that a run has logged."""
    path = folder / "metrics.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, in per cent."""
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{deviation}" if values else ""


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """A metric as Markdown, a line a noise rate and method, a column a normalizer."""
    norms = list(dict.fromkeys(row["norm"] for row in rows))
    lines = []
    for rate, method in dict.fromkeys((row["rate"], row["method"]) for row in rows):
        of_line = [row for row in rows if (row["rate"], row["method"]) == (rate, method) and metric in row]
        cells = [spread([row[metric] for row in of_line if row["norm"] == norm]) for norm in norms]
        lines.append([f"{100 * rate:g} %", method, *cells])
    return markdown(["noise", "method", *norms], lines)


def gains(rows: list[dict[str, Any]]) -> str:
    """Whether each method beats cross-entropy under noise by more than both standard deviations together."""
    lines = []
    for norm, rate, method in dict.fromkeys((row["norm"], row["rate"], row["method"]) for row in rows):
        own, plain = (
            [r[TEST] for r in rows if (r["norm"], r["rate"], r["method"]) == (norm, rate, name)]
            for name in (method, "ce")
        )
        if method == "ce" or not rate or len(own) < 2 or len(plain) < 2:
            continue
        gain, noise = mean(own) - mean(plain), stdev(own) + stdev(plain)
        verdict = "yes" if gain > noise else "no"
        lines.append([norm, f"{100 * rate:g} %", method, f"{100 * gain:+.2f}", f"{100 * noise:.2f}", verdict])
    return markdown(["norm", "noise", "method", "over ce, points", "deviations", "outside"], lines)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="conf/noisy_labels/digits.yaml")
    parser.add_argument("--methods", nargs="+", default=["ce", "gce", "elr", "co_teaching", "divide_mix"])
    parser.add_argument("--norms", nargs="+", default=["bn", "sn", "en"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 0.4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="0 for those of the configuration")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/study"))
    args = parser.parse_args()
    rows = []
    for rate in args.rates:
        for method in args.methods:
            for norm in args.norms:
                for seed in args.seeds:
                    rows.append(run(args, method, norm, rate, seed))
                    told = "{method} {norm} noise {rate:g} seed {seed}: {test/top1:.4f} in {seconds:.0f} s"
                    print(told.format(**rows[-1]), flush=True)
    for metric in (TEST, LAST, *NOISE):
        if any(metric in row for row in rows):
            print(f"\n{metric}, %\n\n{table(rows, metric)}")
    print(f"\n{gains(rows)}\n\nwritten: {write_result('noisy_labels', rows)}")


if __name__ == "__main__":
    main()
