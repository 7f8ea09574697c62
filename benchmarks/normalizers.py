"""Test accuracy by normalizer over seeds, everything else alike: runs of the suite, gathered in a table.

    python -m benchmarks.normalizers [--norms bn sn en] [--seeds 0 1 2] [--config conf/….yaml]

Every run is a call of the task's own command line with the same configuration. A run whose folder is
complete is not repeated, so that an interrupted series goes on. Prints accuracies with a 95 % interval of
the mean (Student's t over seeds) and writes results/normalizers.json.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import markdown, write_result


def run(config: str, norm: str, seed: int, runs_dir: Path) -> dict[str, Any]:
    """Train and test once; the test accuracy and the wall time of the command."""
    name = f"{Path(config).stem}-{norm}-seed{seed}"
    folder = runs_dir / "classification" / name
    start = time.perf_counter()
    if not (folder / "metrics.csv").exists() or test_accuracy(folder) is None:
        command = [
            sys.executable, "-m", "tasks.classification", "fit", "--config", config, "--model.norm", norm,
            "--seed_everything", str(seed), "--name", name, "--runs_dir", str(runs_dir),
            "--resume", "auto", "--test", "true", "--wandb.mode", "disabled",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    accuracy = test_accuracy(folder)
    if accuracy is None:
        raise RuntimeError(f"{folder / 'metrics.csv'}: expected a row with test/top1, found none")
    return {"norm": norm, "seed": seed, "test/top1": accuracy, "seconds": time.perf_counter() - start}


def test_accuracy(folder: Path) -> float | None:
    """The test accuracy that a run has logged, if it has."""
    with (folder / "metrics.csv").open(newline="") as file:
        values = [row["test/top1"] for row in csv.DictReader(file) if row.get("test/top1")]
    return float(values[-1]) if values else None


def half_width(values: list[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t."""
    from scipy.stats import sem, t

    return float(t.ppf(0.975, len(values) - 1) * sem(values)) if len(values) > 1 else float("nan")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, a line a normalizer."""
    lines = []
    for norm in dict.fromkeys(row["norm"] for row in rows):
        values = [100 * row["test/top1"] for row in rows if row["norm"] == norm]
        mean = sum(values) / len(values)
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append([norm, f"{mean:.2f} ± {half_width(values):.2f}", each])
    return markdown(["norm", "test top-1, %", "by seed"], lines)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="conf/classification/digits.yaml")
    parser.add_argument("--norms", nargs="+", default=["bn", "sn", "en"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/normalizers"))
    args = parser.parse_args()
    rows = []
    for norm in args.norms:
        for seed in args.seeds:
            rows.append(run(args.config, norm, seed, args.runs_dir))
            print("{norm} seed {seed}: {test/top1:.4f} in {seconds:.0f} s".format(**rows[-1]), flush=True)
    print(f"\n{table(rows)}\n\nwritten: {write_result('normalizers', rows)}")


if __name__ == "__main__":
    main()
