"""Check a data set before a long run.

    python -m tasks.check_data {imagenet,folder,cityscapes,ade20k,webvision} ROOT [--workers N]
                               [--report check-imagenet.{txt,json,csv}]

Decodes every image and mask in full and compares splits and classes. Exit code 0: clean; 1: broken files or
a faulty layout; 2: bad arguments; 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tasks.check_data.findings import WRITERS, Findings, Gatherer
from tasks.check_data.trees import TREES, tree_of
from tasks.check_data.verify import verify
from tasks.errors import INTERRUPTED, UserError, close_matches, one_line_errors

if TYPE_CHECKING:
    from rich.text import Text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line in place of the usage."""
        raise UserError(message)


def main(arguments: list[str] | None = None) -> int:
    """Check, report, and return the exit code."""
    with one_line_errors():
        options = parse(arguments)
        try:
            findings = check(options.data, options.root, options.workers)
        except KeyboardInterrupt:
            print("interrupted: no report was written", file=sys.stderr)
            return INTERRUPTED
        WRITERS[options.report.suffix](findings, options.report)
        show(findings, options.report)
    return 0 if findings.clean else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: It cannot be used.
    """
    parser = _Parser(
        prog="tasks.check_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="{" + ",".join(TREES) + "}")
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    if options.data not in TREES:
        hint = close_matches(options.data, TREES)
        raise UserError(f"data: expected one of {', '.join(TREES)}, got {options.data!r}{hint}")
    options.root = options.root.expanduser()
    if not options.root.is_dir():
        raise UserError(f"root: expected a folder, got {str(options.root)!r}")
    if options.workers < 1:
        raise UserError(f"--workers: expected a positive number, got {options.workers}")
    options.report = options.report or Path(f"check-{options.data}.txt")
    # Now, not after an hour of decoding.
    if options.report.suffix not in WRITERS or not os.access(options.report.parent, os.W_OK | os.X_OK):
        expected = f"a file {', '.join(WRITERS)} in a folder that can be written to"
        raise UserError(f"--report: expected {expected}, got {str(options.report)!r}")
    return options


def check(data: str, root: Path, workers: int) -> Findings:
    """Check a data set, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with console.status(f"listing {root} …"):
        tree = tree_of(data, root)
    gatherer = Gatherer(tree)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(tree))
        with closing(verify(tree, workers, lambda count: progress.advance(bar, count))) as verdicts:
            for part, index, verdict in verdicts:
                gatherer.add(part, index, verdict)
    return gatherer.findings(data, root)


def show(findings: Findings, report: Path) -> None:
    """The result as a short table."""
    from rich.console import Console
    from rich.table import Table

    formats = ", ".join(f"{kind} {count}" for kind, count in findings.kinds.items())
    within = {where: sum(group["within"] == where for group in findings.duplicates) for where in _WITHIN}
    rows = {split: _counted(counts) for split, counts in findings.counts.items()} | {
        "formats": formats,
        "smallest, largest": "\n".join(str(one) for one in (findings.smallest, findings.largest) if one),
        "duplicates": ", ".join(f"{count} {_WITHIN[where]}" for where, count in within.items()),
        "broken files": _first([f"{one['path']}: {one['reason']}" for one in findings.broken]),
        "faults of layout": _first(findings.problems),
    }
    table = Table("what", "found", title=_plain(f"{findings.data} in {findings.root}"), title_justify="left")
    for what, found in rows.items():
        table.add_row(what, _plain(found))
    console = Console()
    console.print(table)
    console.print(_plain(f"{'clean' if findings.clean else 'not clean'}; report: {report}"), soft_wrap=True)


_WITHIN = {"class": "groups within a class", "classes": "across classes", "splits": "across splits"}
_SHOWN = 5


def _counted(counts: dict[str, int]) -> str:
    sizes = counts.values()
    files = f"{sum(sizes)} files"
    return files if len(sizes) < 2 else f"{files} in {len(sizes)} classes of {min(sizes)} to {max(sizes)}"


def _first(lines: list[str]) -> str:
    more = [f"and {len(lines) - _SHOWN} more, see the report"] if len(lines) > _SHOWN else []
    return "\n".join([str(len(lines)), *lines[:_SHOWN], *more])


def _plain(text: str) -> Text:
    """A text without markup; bytes of file names that are no UTF-8 cannot be shown."""
    from rich.text import Text

    return Text(text.encode("utf-8", "replace").decode(), overflow="fold")


if __name__ == "__main__":
    sys.exit(main())
