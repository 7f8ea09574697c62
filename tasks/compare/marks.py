"""The table of a comparison in a document, between two marks."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import UserError
from tasks.whole_file import whole_file

BEGIN, END = "<!-- compare -->", "<!-- /compare -->"


def check(document: Path) -> None:
    """Refuse a document without the marks.

    Raises:
        UserError: The document is not there, or has not both marks in this order.
    """
    _parts(document)


def replace_between(document: Path, text: str) -> None:
    """Put lines in place of those between the marks.

    Raises:
        UserError: The document is not there, or has not both marks in this order.
    """
    before, after = _parts(document)
    with whole_file(document) as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _parts(document: Path) -> tuple[str, str]:
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--markdown: expected a text file, got {document}: {error}") from error
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise UserError(f"--markdown: expected the lines {BEGIN} and {END} in {document}, which lacks them")
    return before, after
