"""`python -m tasks.classification {fit,validate,test,predict} --config conf/classification/<name>.yaml …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks.errors import one_line_errors
from tasks.preflight import preflight


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line of image classification."""
    args = sys.argv[1:] if args is None else args
    with one_line_errors():
        preflight("classification", args)
        from tasks.classification.data import DigitsDataModule
        from tasks.classification.module import ClassificationModule
        from tasks.cli import run

        run("classification", ClassificationModule, DigitsDataModule, args)


if __name__ == "__main__":
    main()
