"""`report.html` of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tasks.report import environment, page
from tasks.report.curves import curves_of_run
from tasks.report.expected import command_of, expectation_of
from tasks.report.facts import CONFIG, METRICS, REPORT, UNKNOWN, RunFacts, write_summary
from tasks.report.metrics import read_metrics
from tasks.report.page import Html, Section
from tasks.report.table import duration, fraction


def write_report(folder: Path, facts: RunFacts, task_sections: Sequence[Section] = ()) -> None:
    """Write `summary.json` and `report.html` of a run; a disk that refuses them costs the run nothing.

    Args:
        folder: Run folder.
        facts: Facts of the run.
        task_sections: What the task adds, shown after the curves or, where a section says so, at the top.
    """
    outcome, curves, *others = run_sections(folder, facts)
    first = [section for section in task_sections if section.at_top]
    later = [section for section in task_sections if not section.at_top]
    lead = page.join([_lead(facts), _tiles(facts)])
    try:
        write_summary(folder, facts)
        sections = [*first, outcome, curves, *later, *others]
        page.write_page(folder / REPORT, f"{facts.task}: {facts.name}", sections, lead)
    except OSError as error:
        print(f"report: {folder / REPORT} could not be written: {error}", flush=True)


def run_sections(folder: Path, facts: RunFacts) -> list[Section]:
    """What every task's report holds: outcome, curves, resources, what was run."""
    return [
        Section("Outcome", lambda: _outcome(folder, facts)),
        Section("Curves", lambda: _curves(folder, facts)),
        Section("Resources", lambda: page.facts(_resources(facts))),
        Section("What was run", lambda: _what_was_run(folder)),
    ]


def _lead(facts: RunFacts) -> Html:
    parts = (facts.network, facts.norm, facts.dataset, facts.date.replace("T", " ")[:16])
    return page.paragraph(" · ".join(part for part in parts if part not in ("", UNKNOWN)), "lead")


def _tiles(facts: RunFacts) -> Html:
    return page.tiles(
        [
            *_metrics(facts),
            ("epochs", UNKNOWN if facts.epochs is None else facts.epochs),
            ("training time", UNKNOWN if facts.seconds is None else duration(facts.seconds)),
        ]
    )


def _metrics(facts: RunFacts) -> list[tuple[str, str]]:
    best = [] if facts.best is None else [(f"best {facts.monitor}", fraction(facts.best))]
    return [*best, *((name, fraction(value)) for name, value in (facts.test or {}).items())]


def _outcome(folder: Path, facts: RunFacts) -> Html:
    expectation = expectation_of(command_of(folder / CONFIG))
    values = ({} if facts.best is None else {facts.monitor: facts.best}) | (facts.test or {})
    if not values:
        return page.paragraph("Nothing was measured.", "note")
    rows = []
    for name, value in values.items():
        target = expectation.target(name, facts.norm) if expectation else None
        compared = ("", "") if target is None else (fraction(target), f"{value - target:+.4f}")
        rows.append((f"best {name}" if name == facts.monitor else name, fraction(value), *compared))
    # Without a target for any of them, the other columns would be empty.
    shown = 4 if any(expected for _, _, expected, _ in rows) else 2
    header = ["metric", "value", "expected", "difference"][:shown]
    parts = [page.table(header, [row[:shown] for row in rows], "Final metrics", "lrrr"[:shown])]
    if expectation:
        parts.append(page.paragraph(f"Expected, says {expectation.path}: {expectation.text}", "note"))
    return page.join(parts)


def _curves(folder: Path, facts: RunFacts) -> Html:
    return curves_of_run(read_metrics(folder / METRICS), facts.monitor, facts.best)


def _resources(facts: RunFacts) -> Iterable[tuple[str, str]]:
    speed, seconds = facts.images_per_second, facts.seconds
    yield "throughput in training", UNKNOWN if speed is None else f"{speed:,.0f} images/s"
    yield "training and validation", UNKNOWN if seconds is None else duration(seconds)
    yield "peak memory (process)", UNKNOWN if facts.memory is None else _size(facts.memory)
    if facts.gpu_memory is not None:
        yield "peak memory (GPU)", _size(facts.gpu_memory)
    yield "parameters", UNKNOWN if facts.parameters is None else f"{facts.parameters:,}"
    yield "processes", UNKNOWN if facts.processes is None else str(facts.processes)


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def _what_was_run(folder: Path) -> Html:
    config = folder / CONFIG
    command = command_of(config)
    revision = environment.revision()
    parts = [
        *([Html(f'<pre class="wrap">{page.html(command)}</pre>')] if command else []),
        page.subheading("Hardware and system"),
        page.facts(environment.hardware().items()),
        page.subheading("Versions"),
        page.facts(environment.versions().items()),
        *([page.paragraph(f"git revision {revision}", "note")] if revision else []),
    ]
    if config.is_file():
        parts.append(page.details("Configuration", page.code(config.read_text(encoding="utf-8"))))
    return page.join(parts)
