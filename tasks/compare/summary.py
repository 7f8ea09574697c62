"""The results of a comparison by normalizer, and the tables that say them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tasks.compare.plan import Comparison
from tasks.compare.results import FINISHED, Result
from tasks.compare.statistics import Difference, Mean, difference, mean_of
from tasks.report.table import duration

UNKNOWN = "–"
Rows = tuple[list[str], list[list[str]]]
"""A header and its rows."""


@dataclass(frozen=True)
class Summary:
    """A normalizer's runs.

    Attributes:
        norm: The normalizer.
        results: Its runs.
        mean: Mean test metric of the finished ones; None without one.
        difference: This minus the first normalizer, paired by seed; None for the first itself.
    """

    norm: str
    results: Sequence[Result]
    mean: Mean | None
    difference: Difference | None

    @property
    def values(self) -> dict[int, float]:
        """The test metric by seed."""
        return {result.run.seed: result.test for result in self.results if result.test is not None}

    def verdict(self, first: str) -> str:
        """The difference in words."""
        if self.norm == first:
            return ""
        if self.difference is None:
            return f"no seed that both {self.norm} and {first} have finished"
        holds_zero = self.difference.mean.holds_zero
        if holds_zero is None:
            return "one seed alone cannot tell"
        if holds_zero:
            return "cannot be told apart"
        return f"{'better' if self.difference.mean.value > 0 else 'worse'} than {first}"


def summarise(comparison: Comparison, results: Sequence[Result]) -> list[Summary]:
    """The results by normalizer, in the order in which they were named."""
    values = {
        norm: {r.run.seed: r.test for r in results if r.run.norm == norm and r.test is not None}
        for norm in comparison.norms
    }
    first = comparison.norms[0]
    return [
        Summary(
            norm,
            [result for result in results if result.run.norm == norm],
            mean_of(list(values[norm].values())) if values[norm] else None,
            None if norm == first else difference(values[first], values[norm]),
        )
        for norm in comparison.norms
    ]


def test_metric(results: Iterable[Result]) -> str:
    """Name of the test metric, "test/top1" or "test/miou"; "test" where no run tells."""
    monitor = next((result.monitor for result in results if result.monitor), "")
    return monitor.replace("val/", "test/", 1) or "test"


def outcome_table(summaries: Sequence[Summary]) -> Rows:
    """Who wins: mean, each seed, the difference to the first normalizer."""
    first = summaries[0].norm
    metric = test_metric(result for summary in summaries for result in summary.results)
    header = ["norm", f"{metric}, %", "by seed"]
    is_compared = len(summaries) > 1
    has_p = any(summary.difference and summary.difference.p is not None for summary in summaries)
    header += [f"minus {first}, points"] * is_compared + ["p, sign flips"] * has_p + ["verdict"] * is_compared
    rows = []
    for summary in summaries:
        row = [summary.norm, with_interval(summary.mean), ", ".join(map(_by_seed, summary.results))]
        if is_compared:
            found = summary.difference
            row.append(with_interval(found.mean if found else None, sign="+"))
            if has_p:
                row.append(UNKNOWN if found is None or found.p is None else f"{found.p:.3g}")
            row.append(summary.verdict(first) or UNKNOWN)
        rows.append(row)
    return header, rows


def course_table(summaries: Sequence[Summary]) -> Rows:
    """How it went: validation, time, size, what went wrong. Means over the finished runs."""
    header = ["norm", "best validation, %", "at epoch", "last validation, %", "ms a step", "training"]
    header += ["parameters", "finished", "diverged"]
    return header, [_course(summary) for summary in summaries]


def _course(summary: Summary) -> list[str]:
    done = [result for result in summary.results if result.state == FINISHED]
    best = [str(result.best_epoch) for result in done if result.best_epoch is not None]
    lengths = sorted({result.epochs for result in done if result.epochs is not None})
    epochs = f"{', '.join(best)} of {' or '.join(map(str, lengths))}" if best and lengths else UNKNOWN
    return [
        summary.norm,
        _mean((result.best for result in done), percent),
        epochs,
        _mean((result.last for result in done), percent),
        _mean((result.step_ms for result in done), "{:.1f}".format),
        _mean((result.seconds for result in done), duration),
        _mean((result.parameters for result in done), "{:,.0f}".format),
        f"{len(done)} of {len(summary.results)}",
        ", ".join(f"seed {result.run.seed}" for result in summary.results if result.diverged) or "none",
    ]


def percent(value: float) -> str:
    """A fraction in per cent, with two digits."""
    return f"{100 * value:.2f}"


def with_interval(mean: Mean | None, sign: str = "") -> str:
    """A mean of fractions in per cent, and half its interval."""
    if mean is None:
        return UNKNOWN
    half = "" if mean.half is None else f" ± {percent(mean.half)}"
    return f"{100 * mean.value:{sign}.2f}{half}"


def _by_seed(result: Result) -> str:
    told = result.state if result.test is None else percent(result.test)
    return f"{told} (diverged)" if result.diverged else told


def _mean(values: Iterable[float | None], told: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return told(fmean(known)) if known else UNKNOWN
