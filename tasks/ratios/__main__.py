"""`python -m tasks.ratios --ckpt <run folder or checkpoint> …`: what the layers choose, sample by sample.

Further options of the task's command line, such as --data.root <folder>, are passed on to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.arguments import LineParser, at_least
from tasks.errors import UserError, one_line_errors

if TYPE_CHECKING:
    from tasks.ratios.load import Trained


def main(args: Sequence[str] | None = None) -> None:
    """Write the table of ratios, the figures and the page, and say where they are."""
    with one_line_errors():
        options, others = _parse(list(sys.argv[1:] if args is None else args))
        print("ratios: loading the libraries …", file=sys.stderr, flush=True)
        from tasks.ratios.load import load_trained

        trained = [load_trained(path, options.config, options.task, others) for path in options.ckpt]
        output = options.output or (trained[0].folder or trained[0].checkpoint.parent) / "ratios"
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output: expected a folder, got {str(output)!r}: {error.strerror}") from error
        _analyse(trained, options.split, options.limit, output)


def _analyse(trained: Sequence[Trained], split: str, limit: int, output: Path) -> None:
    from dataclasses import replace

    from tasks.ratios.collect import collect
    from tasks.ratios.pages import NUMBERS, numbers, write_analysis
    from tasks.ratios.worth import SHUFFLE, worth_in_words, write_worth
    from tasks.report import print_table

    names = _distinct([one.name for one in trained], [one.task for one in trained])
    runs = []
    for one, name in zip(trained, names, strict=True):
        of = "" if len(trained) == 1 else f"-{name}"
        runs.append(collect(replace(one, name=name), split, limit, output / f"ratios{of}.parquet"))
        if worth := runs[-1].worth:
            write_worth(output / f"{Path(SHUFFLE).stem}{of}.csv", worth)
    write_analysis(output, runs)
    for run in runs:
        if run.exemplar:
            print_table(run.trained.name, dict(zip(NUMBERS, numbers(run), strict=True)))
        if run.worth:
            print(worth_in_words(run.worth))
    print(f"written to {output}: index.html, figures as PNG and SVG, tables as parquet, shuffle.csv")


def _distinct(names: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The names, with the task before them and a number behind where they would be the same."""
    if len(set(names)) < len(names):
        names = [f"{task}-{name}" for task, name in zip(tasks, names, strict=True)]
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return distinct


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = LineParser(prog="python -m tasks.ratios", description=(__doc__ or "").strip())
    parser.add_argument(
        "--ckpt",
        required=True,
        nargs="+",
        type=Path,
        help="Run folders or checkpoints; several are compared.",
    )
    parser.add_argument(
        "-c", "--config", action="append", default=[], help="Configuration; by default that of each run."
    )
    parser.add_argument(
        "--task", help="Task of the checkpoint, where neither run nor configuration tells it."
    )
    parser.add_argument("--split", choices=("val", "test"), default="val", help="Samples to read.")
    parser.add_argument(
        "--limit", type=partial(at_least, 0), default=0, help="Most samples, taken evenly; 0 for all."
    )
    parser.add_argument("--output", type=Path, help="Folder to write; by default ratios/ in the first run.")
    options, others = parser.parse_known_args(args)
    wrong = next((a for a in others if a.startswith("-") and not a.startswith(("--data.", "--model."))), None)
    if wrong or (others and not others[0].startswith("--")):
        raise UserError(f"ratios: unknown option {wrong or others[0]}")
    return options, others


if __name__ == "__main__":
    main()
