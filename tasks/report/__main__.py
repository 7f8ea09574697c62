"""`python -m tasks.report [--runs_dir runs]`: write the index of all runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import one_line_errors
from tasks.report.index import INDEX, write_index


def main(args: Sequence[str] | None = None) -> None:
    """Write `index.html` and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m tasks.report", description="Compare all runs on a page.")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="Parent of the run folders.")
    root: Path = parser.parse_args(args).runs_dir
    with one_line_errors():
        count = write_index(root)
        print(f"{count} runs compared in {root / INDEX}")


if __name__ == "__main__":
    main()
