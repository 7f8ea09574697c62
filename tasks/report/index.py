"""`index.html` of a folder of runs: a table to sort and the validation curves over each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from tasks.errors import UserError
from tasks.report import page
from tasks.report.colors import norm_color
from tasks.report.curves import overlay
from tasks.report.expected import command_of
from tasks.report.facts import CONFIG, REPORT, RunFacts, facts_of_folder
from tasks.report.metrics import Curve
from tasks.report.page import Html, Section
from tasks.report.table import duration, fraction

INDEX = "index.html"
Run = tuple[Path, RunFacts, dict[str, Curve]]


def write_index(root: Path) -> int:
    """Write `index.html` over all runs below `root`; returns their number.

    Raises:
        UserError: `root` is no folder or holds no run.
    """
    if not root.is_dir():
        raise UserError(f"--runs_dir: expected a folder, got {str(root)!r}")
    runs: list[Run] = [(folder, *facts_of_folder(folder)) for folder in find_runs(root)]
    if not runs:
        raise UserError(f"--runs_dir: expected run folders with a {CONFIG} below {root}, got none")
    runs.sort(key=lambda run: (run[1].task, str(run[0])))
    sections = [Section("Runs", partial(_table, root, runs))]
    for task, of_task in groupby(runs, key=lambda run: run[1].task):
        sections.append(Section(f"Validation: {task}", partial(_curves, list(of_task))))
    script = Path(__file__).with_name("sort.js").read_text(encoding="utf-8")
    lead = page.paragraph(f"{len(runs)} runs below {root}", "lead")
    page.write_page(root / INDEX, "Runs", sections, lead, script)
    return len(runs)


def find_runs(root: Path) -> Iterator[Path]:
    """The run folders below `root`; what lies within one, as W&B's files do, is not looked at."""
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        if command_of(folder / CONFIG):
            folders.clear()
            yield folder
        folders.sort()


def _table(root: Path, runs: Sequence[Run]) -> Html:
    tested = sorted({name for _, facts, _ in runs for name in facts.test or {}})
    header = ["run", "task", "data set", "network", "norm", "best validation", *tested]
    header += ["epochs", "time", "date"]
    rows = (_row(root, folder, facts, tested) for folder, facts, _ in runs)
    return page.table(header, rows, "All runs", "lllllr" + "r" * len(tested) + "rrl", "runs")


def _row(root: Path, folder: Path, facts: RunFacts, tested: Iterable[str]) -> list[object]:
    place = folder.relative_to(root)
    # The task has a column of its own; folders above it group runs.
    name = (place.parent.parent if place.parent.name == facts.task else place.parent) / place.name
    report = quote((place / REPORT).as_posix())
    link = Html(f'<a href="{report}">{page.html(name)}</a>')
    values = (None if facts.test is None else facts.test.get(name) for name in tested)
    best = "" if facts.best is None else f"{fraction(facts.best)} ({facts.monitor.removeprefix('val/')})"
    return [
        link if (folder / REPORT).is_file() else name,
        facts.task,
        facts.dataset,
        facts.network,
        (page.swatch(norm_color(facts.norm), facts.norm), facts.norm),
        (best, "" if facts.best is None else facts.best),
        *("" if value is None else fraction(value) for value in values),
        "" if facts.epochs is None else facts.epochs,
        ("", "") if facts.seconds is None else (duration(facts.seconds), facts.seconds),
        (facts.date[:10], facts.date),
    ]


def _curves(runs: Sequence[Run]) -> Html:
    metric = Counter(facts.monitor for _, facts, _ in runs if facts.monitor).most_common(1)
    drawn = [
        (facts.norm, curves[metric[0][0]]) for _, facts, curves in runs if metric and metric[0][0] in curves
    ]
    if not drawn:
        return page.paragraph("No run has validated yet.", "note")
    return overlay("Validation by normalizer", metric[0][0], drawn)
