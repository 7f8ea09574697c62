"""`index.html` of a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import yaml

from tasks.compare.figures import curves, dots
from tasks.compare.plan import Comparison
from tasks.compare.results import FAILED, FINISHED, Result
from tasks.compare.summary import (
    UNKNOWN,
    Rows,
    Summary,
    course_table,
    outcome_table,
    percent,
    test_metric,
    with_interval,
)
from tasks.report import environment, page
from tasks.report.colors import norm_color
from tasks.report.facts import REPORT
from tasks.report.page import Html, Section
from tasks.report.table import duration

_WORDS = ("norm", "by seed", "verdict", "at epoch", "diverged")  # columns that hold no single number


def write_page(path: Path, comparison: Comparison, summaries: Sequence[Summary], how: str) -> None:
    """Write the page.

    Args:
        path: File to write.
        comparison: What was compared.
        summaries: What came out, the first normalizer first.
        how: How many runs were trained at a time.
    """
    results = [result for summary in summaries for result in summary.results]
    failed = [result for result in results if result.state == FAILED]
    sections = [
        Section("Who wins", partial(_winners, summaries, test_metric(results))),
        Section("Validation", partial(_validation, summaries, results)),
        Section("Table", partial(_tables, summaries, how)),
        *([Section("Failures", partial(_failures, failed))] if failed else []),
        Section("Runs", partial(_runs, comparison, results)),
        Section("What was run", partial(_what_was_run, comparison)),
    ]
    names = " · ".join([comparison.task, *(Path(config).stem for config in comparison.configs)])
    lead = page.join([page.paragraph(names, "lead"), page.tiles(_best_known(comparison, summaries, results))])
    page.write_page(path, f"Comparison of {', '.join(comparison.norms)}", sections, lead)


def _best_known(
    comparison: Comparison, summaries: Sequence[Summary], results: Sequence[Result]
) -> list[tuple[object, object]]:
    means: list[tuple[object, object]] = [
        (page.swatch(norm_color(s.norm), s.norm), f"{percent(s.mean.value)} %") for s in summaries if s.mean
    ]
    done = sum(result.state == FINISHED for result in results)
    return [*means, ("seeds", len(comparison.seeds)), ("finished", f"{done} of {len(results)}")]


def _winners(summaries: Sequence[Summary], metric: str) -> Html:
    if not any(summary.mean for summary in summaries):
        return page.paragraph("No run has finished yet.", "note")
    first = summaries[0].norm
    said = [page.paragraph(_sentence(summary, first)) for summary in summaries[1:]]
    alone = "Each difference is judged by itself: none of the intervals is widened for their number."
    return page.join([dots(summaries, metric), *said, page.paragraph(alone, "note") if len(said) > 1 else ""])


def _sentence(summary: Summary, first: str) -> Html:
    name = page.swatch(norm_color(summary.norm), summary.norm)
    found, verdict = summary.difference, summary.verdict(first)
    if found is None:
        return page.join([name, f" and {first}: {verdict}."])
    told = f"{with_interval(found.mean, sign='+')} points"
    p = "" if found.p is None else f", p = {found.p:.3g} by flipping signs"
    if found.mean.holds_zero is False:
        return page.join([name, f" is {verdict}: {told}{p}."])
    return page.join([name, f" and {first}: {verdict}: {told}{p}."])


def _validation(summaries: Sequence[Summary], results: Sequence[Result]) -> Html:
    metric = next((result.monitor for result in results if result.curve.values), None)
    if metric is None:
        return page.paragraph("No run has validated yet.", "note")
    return curves(summaries, metric)


def _tables(summaries: Sequence[Summary], how: str) -> Html:
    note = (
        "± is the 95 % interval of the mean over seeds, by Student's t. Differences are paired: the same "
        "seed means the same split, order of the data and initial convolution weights for every normalizer. "
        "Two cannot be told apart where the interval of their difference holds zero. The p-value, given from "
        "5 seeds on, is the share of all ways to flip the signs of the differences whose mean is at least as "
        "far from zero. Tested is the best checkpoint by validation, also of a run that diverged."
    )
    speed = f"Times, means over the finished runs, were taken with so many runs training: {how}."
    return page.join(
        [
            _as_html(outcome_table(summaries), "Outcome by normalizer"),
            page.paragraph(note, "note"),
            _as_html(course_table(summaries), "Course by normalizer"),
            page.paragraph(speed, "note"),
        ]
    )


def _as_html(table: Rows, label: str) -> Html:
    header, rows = table
    align = "".join("l" if name in _WORDS else "r" for name in header)
    names = header[1:]
    cells = [[page.swatch(norm_color(norm), norm), *(map(_cell, names, values))] for norm, *values in rows]
    return page.table(header, cells, label, align, "compared")


def _cell(name: str, value: str) -> Html | str:
    """Words keep lines that are worth reading, rather than to fold to one number each."""
    return Html(f'<div class="words">{page.html(value)}</div>') if name in _WORDS else value


def _failures(failed: Sequence[Result]) -> Html:
    parts: list[Html] = []
    for result in failed:
        parts += [page.subheading(result.run.name), page.code(result.error)]
    return page.join(parts)


def _runs(comparison: Comparison, results: Sequence[Result]) -> Html:
    header = ["run", "seed", "state", "test, %", "best validation, %", "epochs", "training", "report", "log"]
    rows = [_row(comparison, result) for result in results]
    return page.table(header, rows, "All runs", "lrlrrrrll", "runs")


def _row(comparison: Comparison, result: Result) -> list[object]:
    run = result.run
    values = [UNKNOWN if value is None else percent(value) for value in (result.test, result.best)]
    return [
        page.swatch(norm_color(run.norm), run.norm),
        run.seed,
        f"{result.state}, diverged" if result.diverged else result.state,
        *values,
        UNKNOWN if result.epochs is None else result.epochs,
        UNKNOWN if result.seconds is None else duration(result.seconds),
        _link(comparison, comparison.folder_of(run).path / REPORT, "report"),
        _link(comparison, comparison.log_of(run), "log"),
    ]


def _link(comparison: Comparison, path: Path, text: str) -> Html | str:
    if not path.is_file():
        return UNKNOWN
    place = quote(path.relative_to(comparison.folder).as_posix())
    return Html(f'<a href="{place}">{page.html(text)}</a>')


def _what_was_run(comparison: Comparison) -> Html:
    run = comparison.runs[0]
    line = shlex.join(["python", "-m", f"tasks.{comparison.task}", *comparison.arguments(run)])
    config = yaml.safe_dump(comparison.configuration(run), sort_keys=False)
    revision = environment.revision()
    return page.join(
        [
            Html(f'<pre class="wrap">{page.html(comparison.command)}</pre>'),
            page.paragraph("The first of the runs; the others differ in normalizer, seed and name.", "note"),
            Html(f'<pre class="wrap">{page.html(line)}</pre>'),
            page.facts([*environment.hardware().items(), *environment.versions().items()]),
            *([page.paragraph(f"git revision {revision}", "note")] if revision else []),
            page.details(f"Configuration of {run.name}", page.code(config)),
        ]
    )
