"""Sweeps over the options of a task.

python -m tasks.sweeps check [FILE …]                 every file in conf/sweep by default; no server needed
python -m tasks.sweeps local FILE [--count N]         with Optuna on this machine; goes on where it was
python -m tasks.sweeps wandb FILE [--count N]         created at W&B, run by its agent
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tasks.arguments import LineParser, at_least
from tasks.errors import UserError, one_line_errors


def main(args: Sequence[str] | None = None) -> None:
    """Check, run here, or run with W&B."""
    with one_line_errors():
        options = _parser().parse_args(args)
        if options.action == "check":
            _check(options.files or sorted(Path("conf/sweep").glob("*.yaml")))
        elif options.action == "local":
            from tasks.sweeps.local import run_locally

            # Ctrl-C to the run in hand, which then leaves a checkpoint to go on from.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            run_locally(options.file, options.count, options.runs_dir)
        else:
            from tasks.sweeps.agent import run_with_wandb

            run_with_wandb(options.file, options.count, options.project, options.runs_dir)


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(
        prog="python -m tasks.sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, parser_class=LineParser)
    check = actions.add_parser("check")
    check.add_argument("files", nargs="*", type=Path)
    positive = partial(at_least, 1)
    for name, count in (("local", 10), ("wandb", None)):
        action = actions.add_parser(name)
        action.add_argument("file", type=Path)
        action.add_argument("--count", type=positive, default=count, help="Runs in all.")
        action.add_argument("--runs_dir", type=Path, default=Path("runs"), help="Parent of the run folders.")
    action.add_argument("--project", default="exemplar-norm", help="Project at W&B.")
    return parser


def _check(files: Sequence[Path]) -> None:
    from tasks.sweeps.check import check_sweep

    if not files:
        raise UserError("expected sweep files, got none: conf/sweep holds none")
    for path in files:
        print(check_sweep(path), flush=True)


if __name__ == "__main__":
    main()
