"""What a comparison leaves: tables on the terminal, in files and in a document, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.compare import marks
from tasks.compare.page import write_page
from tasks.compare.plan import Comparison
from tasks.compare.results import FINISHED, Result
from tasks.compare.summary import Rows, Summary, course_table, outcome_table, summarise, test_metric
from tasks.report.environment import hardware, revision, versions
from tasks.tables import write_table
from tasks.whole_file import whole_file

CSV, JSON, PAGE = "compare.csv", "compare.json", "index.html"
_COLUMNS = (
    "test", "best", "best_epoch", "last", "epochs", "step_ms", "seconds", "parameters",
)  # fmt: skip
_UNBOUNDED = 10_000


def show_outcome(
    comparison: Comparison,
    results: Sequence[Result],
    jobs: int,
    threads: int,
    markdown: Path | None = None,
) -> None:
    """Write the files and print the tables.

    Args:
        comparison: What was compared.
        results: What each run came to.
        jobs: Runs that were trained at a time.
        threads: CPU threads of each.
        markdown: Document that gets the table too.
    """
    summaries = summarise(comparison, results)
    how = f"{jobs} at a time, {threads} thread{'s' if threads > 1 else ''} each"
    _write_csv(comparison.folder / CSV, results)
    _write_json(comparison, summaries, how)
    write_page(comparison.folder / PAGE, comparison, summaries, how)
    for title, table in (("Outcome", outcome_table(summaries)), ("Course", course_table(summaries))):
        _print(title, table)
    print(
        f"± is the 95 % interval of a mean over seeds (Student's t); differences are paired by seed\n"
        f"page: {comparison.folder / PAGE}; tables: {CSV} and {JSON} beside it",
        flush=True,
    )
    if markdown:
        marks.replace_between(markdown, as_markdown(comparison, summaries))
        print(f"written: the table in {markdown}", flush=True)


def as_markdown(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    """What is compared, and the outcome as a table of Markdown."""
    header, rows = outcome_table(summaries)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    epochs = next((result.epochs for s in summaries for result in s.results if result.epochs), None)
    trained = f"{epochs} epochs each" if epochs else "none of them trained yet"
    told = (
        f"`{comparison.command}`: the same configuration, data order, split and initial convolution weights "
        f"for every normalizer at a seed, {trained}. ± is the 95 % interval of the mean over seeds "
        "(Student's t); differences are paired by seed."
    )
    return f"{told}\n\n{table}"


def _write_csv(path: Path, results: Sequence[Result]) -> None:
    header = ["norm", "seed", "state", "diverged", "metric", *_COLUMNS, "error"]
    rows = []
    for result in results:
        values = [getattr(result, name) for name in _COLUMNS]
        told = [result.run.norm, result.run.seed, result.state, result.diverged, test_metric([result])]
        rows.append([*told, *("" if value is None else value for value in values), result.error])
    write_table(path, header, rows)


def _write_json(comparison: Comparison, summaries: Sequence[Summary], how: str) -> None:
    tree = {
        "command": comparison.command,
        "configuration": {norm: comparison.configurations[norm] for norm in comparison.norms},
        "runs_at_once": how,
        "hardware": hardware(),
        "versions": versions(),
        "revision": revision(),
        "metric": test_metric(result for summary in summaries for result in summary.results),
        "norms": {summary.norm: _as_tree(summary, comparison.norms[0]) for summary in summaries},
    }
    with whole_file(comparison.folder / JSON) as file:
        file.write(json.dumps(tree, indent=2, default=str) + "\n")


def _as_tree(summary: Summary, first: str) -> dict[str, Any]:
    return {
        "mean": asdict(summary.mean) if summary.mean else None,
        "minus_first": asdict(summary.difference) if summary.difference else None,
        "verdict": summary.verdict(first),
        "finished": sum(result.state == FINISHED for result in summary.results),
        "runs": [asdict(result) for result in summary.results],
    }


def _print(title: str, table: Rows) -> None:
    shown = Table(title=title, title_justify="left")
    header, rows = table
    for name in header:
        shown.add_column(name, no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    # A row folded into several lines cannot be read: let it run on.
    needed = Console(width=_UNBOUNDED).measure(shown).maximum
    Console(width=max(Console().width, needed)).print(shown, markup=False)
