"""Command lines without a configuration: argparse with one-line complaints."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tasks.errors import UserError


class LineParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, with the last word of `prog` before it."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.prog.split()[-1]}: {message}")


def at_least(least: int, text: str) -> int:
    """An integer option.

    Raises:
        argparse.ArgumentTypeError: It is none, or below `least`.
    """
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer ≥ {least}, got {text!r}")
    return value
