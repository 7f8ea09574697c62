"""Text files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_file(path: Path, *, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file to write under another name, and rename it when the block ends.

    Readers see the file before or the new one, never a part; if the block raises, the file before stays.

    Args:
        path: The file to write.
        newline: That of `open`.
        errors: That of `open`.
    """
    # A name of its own for each writer: two at once would write into one file.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", newline=newline, encoding="utf-8", errors=errors) as file:
            os.fchmod(file.fileno(), 0o644)
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise
