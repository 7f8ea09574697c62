"""Train several normalizers with one configuration, and show which of them wins.

python -m tasks.compare [--task classification] [--config conf/….yaml] [--norms bn sn en] [--seeds 0 1 2]

Further options are those of the task's command line and are passed on: --trainer.max_epochs 5. Repeat a
command to go on: finished runs are not repeated, interrupted ones resume.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tasks.arguments import LineParser, at_least
from tasks.compare.plan import Comparison
from tasks.errors import UserError, one_line_errors

TASKS = ("classification", "noisy_labels", "segmentation")


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the outcome."""
    args = list(sys.argv[1:] if args is None else args)
    with one_line_errors():
        own, further = _parser().parse_known_args(args)
        comparison = _comparison(own, further)
        from tasks.compare.session import compare

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, signal.default_int_handler)
        compare(comparison, own.jobs, own.markdown, f"python -m tasks.compare {shlex.join(args)}")


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(
        prog="python -m tasks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--task", choices=TASKS, default="classification", help="What is trained.")
    add("--config", action="append", help="Configuration; may be given several times (default: its digits).")
    add("--norms", nargs="+", default=["bn", "sn", "en"], help="Normalizers; differences are to the first.")
    add("--seeds", nargs="+", type=partial(at_least, 0), default=[0, 1, 2], help="Seeds of each normalizer.")
    add("--name", help="Name of the comparison (default: <task>-<configuration>).")
    add(
        "--jobs", type=partial(at_least, 1), help="Runs at a time (default: CPU cores / threads; 1 on a GPU)."
    )
    add("--runs_dir", type=Path, default=Path("runs"), help="The comparison lies in compare/<name> in it.")
    add("--markdown", type=Path, help="Write the table between the marks of this file as well.")
    return parser


def _comparison(own: argparse.Namespace, further: Sequence[str]) -> Comparison:
    for option, values in {"--norms": own.norms, "--seeds": own.seeds}.items():
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"{option}: expected each once, got {twice} {values.count(twice)} times")
    configs = own.config or [f"conf/{own.task}/digits.yaml"]
    name = own.name or f"{own.task}-{Path(configs[0]).stem}"
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--name: expected a plain folder name, got {name!r}")
    folder = own.runs_dir / "compare" / name
    comparison = Comparison(
        own.task, tuple(configs), tuple(own.norms), tuple(own.seeds), tuple(further), folder
    )
    comparison.check_options()
    return comparison


if __name__ == "__main__":
    main()
