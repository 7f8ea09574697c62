"""Bad input as one line: what was expected, what came, and where."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TRACEBACK_VARIABLE = "EXEMPLAR_NORM_TRACEBACK"
BAD_INPUT, INTERRUPTED = 2, 130
_LONGEST_LINE = 600


class UserError(Exception):
    """Input that cannot be used; the message is shown as it is, without a traceback.

    Args:
        message: What is wrong, in one line.
    """

    def __init__(self, message: str) -> None:
        # What a loader's worker raises is built anew in the training process, from the traceback as text.
        kind = type(self)
        super().__init__(message.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a UserError into one line on stderr and exit code 2, Ctrl-C into exit code 130.

    Raises:
        SystemExit: In place of the error; the whole traceback is shown with EXEMPLAR_NORM_TRACEBACK=1.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            traceback.print_exc()
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def close_matches(word: str, choices: Iterable[str]) -> str:
    """' (did you mean a, b?)' for the choices that resemble `word`, or nothing."""
    found = difflib.get_close_matches(word, list(choices), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(found)}?)" if found else ""


def one_line(text: str) -> str:
    """Join the lines of a text and cut it where it is too long to be read."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"
