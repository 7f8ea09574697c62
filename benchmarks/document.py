"""Tables in the documentation that a benchmark writes, between two marks."""

from __future__ import annotations

from pathlib import Path

from tasks.whole_file import whole_file


def has_marks(document: Path, begin: str, end: str) -> bool:
    """Whether a document is there and has both marks, in this order."""
    if not document.exists():
        return False
    _, found, rest = document.read_text(encoding="utf-8").partition(begin)
    return bool(found) and end in rest


def replace_between(document: Path, begin: str, end: str, text: str) -> None:
    """Put `text` in place of what is between two marks of a document.

    Raises:
        RuntimeError: the marks are not there.
    """
    if not has_marks(document, begin, end):
        raise RuntimeError(f"{document}: expected the lines {begin!r} and {end!r}")
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    with whole_file(document) as file:
        file.write(f"{before}{begin}{text}{end}{after}")
