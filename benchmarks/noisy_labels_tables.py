"""Tables of the study of label noise, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.measure import markdown

Row = dict[str, Any]

TEST, BEST, LAST = "test/top1", "val/top1 best", "val/top1 last"
NOISE = {
    "train/memorised": "Wrong labels that are memorised at the end",
    "train/noise_auroc_suspects": "AUROC of finding wrong labels by `suspects.csv`",
    "train/noise_auroc_loss": "AUROC of finding wrong labels by the loss in the last epoch",
    "train/noise_auroc_ratio": "AUROC of finding wrong labels by the ratios of EN at the end",
}
SHOWN = {
    TEST: "Test top-1, at the epoch of best validation",
    LAST: "Validation top-1 of the last epoch",
    **NOISE,
}


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, in per cent."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}" if values else ""


def table(rows: Sequence[Row], metric: str) -> str:
    """A metric as Markdown, a line a noise rate and method, a column a normalizer; '' where no run has it."""
    having = [row for row in rows if metric in row]
    norms = list(dict.fromkeys(row["norm"] for row in having))
    lines = []
    for rate, method in dict.fromkeys((row["rate"], row["method"]) for row in having):
        of_line = [row for row in having if (row["rate"], row["method"]) == (rate, method)]
        cells = [spread([row[metric] for row in of_line if row["norm"] == norm]) for norm in norms]
        lines.append([f"{100 * rate:g} %", f"`{method}`", *cells])
    return markdown(["noise", "method", *norms], lines) if lines else ""


def gains(rows: Sequence[Row], metric: str) -> list[tuple[str, float, str, float, float]]:
    """(method, rate, normalizer, gain over cross-entropy, both standard deviations together) under noise."""
    found = []
    for method, rate, norm in dict.fromkeys((row["method"], row["rate"], row["norm"]) for row in rows):
        own, plain = (
            [r[metric] for r in rows if (r["method"], r["rate"], r["norm"]) == (name, rate, norm)]
            for name in (method, "ce")
        )
        if method != "ce" and rate and min(len(own), len(plain)) > 1:
            found.append((method, rate, norm, mean(own) - mean(plain), stdev(own) + stdev(plain)))
    return found


def verdict(rows: Sequence[Row], metric: str) -> str:
    """Where each method differs from cross-entropy under noise by more than both deviations together."""
    lines = []
    for method, rate in dict.fromkeys((gain[0], gain[1]) for gain in gains(rows, metric)):
        parts = [
            f"{norm} {100 * gain:+.1f} ({_told(gain, noise)} {100 * noise:.1f})"
            for name, of, norm, gain, noise in gains(rows, metric)
            if (name, of) == (method, rate)
        ]
        lines.append(f"- `{method}`, {100 * rate:g} % noise: {', '.join(parts)}")
    return "\n".join(lines)


def _told(gain: float, noise: float) -> str:
    return "within" if abs(gain) <= noise else "better, outside" if gain > 0 else "worse, outside"


def choices(rows: Sequence[Row], chosen: Mapping[str, str]) -> str:
    """The best validation accuracy of each method by learning rate, and the rate that was chosen."""
    rates = list(dict.fromkeys(row["lr"] for row in rows))
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_rate = {row["lr"]: f"{100 * row[BEST]:.1f}" for row in rows if row["method"] == method}
        lines.append([f"`{method}`", *(of_rate.get(rate, "") for rate in rates), chosen[method]])
    return markdown(["method", *(f"rate {rate}" for rate in rates), "chosen"], lines)


def report(result: Mapping[str, Any]) -> str:
    """All of it, as it stands in the documentation."""
    rows, told = result["rows"], result["machine"]
    minutes = sum(row["seconds"] for row in [*rows, *result["tuning"]]) / 60
    seeds = sorted({row["seed"] for row in rows})
    parts = [
        f"`{result['config']}`, {len(rows)} runs of seeds {', '.join(map(str, seeds))}: mean ± standard "
        f"deviation, in %. {told['cpu']}, one thread a run, torch {told['torch']}, {told['date']}; "
        f"{minutes:.0f} minutes with the tuning.",
        f"Best validation top-1 by learning rate ({result['tuned']['norm']}, one run each, of a seed that is "
        "none of the study's):",
        choices(result["tuning"], result["chosen"]),
    ]
    for metric, title in SHOWN.items():
        found = table(rows, metric)
        parts += [f"{title}:", found] if found else []
    for metric in (TEST, LAST):
        found = verdict(rows, metric)
        if found:
            name = SHOWN[metric][0].lower() + SHOWN[metric][1:]
            parts += [
                f"Gain over `ce` in points of {name}, and both standard deviations together:",
                found,
            ]
    return "\n\n".join(part for part in parts if part)
