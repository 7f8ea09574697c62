"""A self-contained HTML page: nothing is fetched, everything that comes from data is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tasks.errors import one_line
from tasks.whole_file import whole_file

_ROOM = Path(__file__).parent


class Html(str):
    """Markup that goes into a page as it is; any other text is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        title: Heading.
        build: Makes the content. It is called when the page is written; where it fails, the page says so.
        at_top: Whether the report of a run shows it before all others.
    """

    title: str
    build: Callable[[], str]
    at_top: bool = False


def html(value: object) -> Html:
    """Markup as it is, anything else as escaped text."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """Several pieces one after the other."""
    return Html("".join(html(part) for part in parts))


def paragraph(text: object, kind: str = "") -> Html:
    """A paragraph; `kind` is its class in the style sheet."""
    return Html(f"<p{_class(kind)}>{html(text)}</p>")


def subheading(text: object) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{html(text)}</h3>")


def swatch(color: str, name: object = "") -> Html:
    """A field of a colour and what it stands for."""
    return Html(f'<span class="swatch" style="background:{escape(color)}"></span>{html(name)}')


def grid(parts: Iterable[object]) -> Html:
    """Pieces side by side, as many as fit."""
    return Html(f'<div class="grid">{join(parts)}</div>')


def card(title: object, text: object, content: object) -> Html:
    """A small block with its own heading, for a grid."""
    return Html(f'<div class="card">{subheading(title)}{paragraph(text, "note")}{html(content)}</div>')


def code(text: object) -> Html:
    """Preformatted text, which scrolls in its box."""
    return Html(f'<pre tabindex="0">{html(text)}</pre>')


def details(summary: object, content: object) -> Html:
    """Content that is folded away at first."""
    return Html(f"<details><summary>{html(summary)}</summary>{html(content)}</details>")


def facts(rows: Iterable[tuple[object, object]]) -> Html:
    """A list of names and values."""
    return _list(rows)


def tiles(rows: Iterable[tuple[object, object]]) -> Html:
    """The few values that are looked for first, in large type."""
    return _list(rows, "tiles")


def _list(rows: Iterable[tuple[object, object]], kind: str = "") -> Html:
    items = (f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in rows)
    return Html(f"<dl{_class(kind)}>{''.join(items)}</dl>")


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], label: str, align: str = "", kind: str = ""
) -> Html:
    """A table that scrolls sideways in its box; the first cell of a row is its heading.

    Args:
        header: Names of the columns.
        rows: Cells of each row: text, `Html`, or a pair of one of them and the value to sort by.
        label: What the table holds, for those who hear it.
        align: A letter a column, "l" for left and "r" for right; all left where it is empty.
        kind: Class in the style sheet.
    """
    sides = [_class("number" if side == "r" else "") for side in align or "l" * len(header)]
    names = "".join(
        f'<th scope="col"{side}>{html(name)}</th>' for name, side in zip(header, sides, strict=True)
    )
    body = "".join(f"<tr>{_cells(row, sides)}</tr>" for row in rows)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table{_class(kind)}><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Sequence[object], sides: Sequence[str]) -> str:
    cells = []
    for position, (cell, side) in enumerate(zip(row, sides, strict=True)):
        shown, value = cell if isinstance(cell, tuple) else (cell, None)
        order = "" if value is None else f' data-value="{escape(str(value))}"'
        tag = "td" if position else "th"
        scope = "" if position else ' scope="row"'
        cells.append(f"<{tag}{scope}{side}{order}>{html(shown)}</{tag}>")
    return "".join(cells)


def _class(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""


def write_page(
    path: Path, title: str, sections: Sequence[Section], lead: object = "", script: str = ""
) -> None:
    """Write a page of its own; a reader sees the old one or the new one, never a part.

    Args:
        path: File to write.
        title: Title and main heading.
        sections: What the page holds, each built here.
        lead: What stands between the main heading and the sections.
        script: Inline script.
    """
    text = _page(title, sections, lead, script)
    # File names need not be Unicode.
    with whole_file(path, errors="replace") as file:
        file.write(text)


def _page(title: str, sections: Sequence[Section], lead: object, script: str) -> str:
    contents = "".join(
        f'<a href="#part-{number}">{html(section.title)}</a>' for number, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="part-{number}"><h2>{html(section.title)}</h2>{_built(section)}</section>'
        for number, section in enumerate(sections)
    )
    # Names of classes and files come from data: should one get past the escaping, nothing is fetched or run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'" + (
        f"; script-src 'sha256-{digest}'" if script else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html(title)}</title>\n<style>{(_ROOM / 'page.css').read_text(encoding='utf-8')}</style>"
        f"</head>\n<body><header><h1>{html(title)}</h1>{html(lead)}</header>"
        f'<nav aria-label="Contents">{contents}</nav>\n<main>{body}</main>'
        f"{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def _built(section: Section) -> str:
    try:
        return section.build()
    except Exception as error:  # a picture that cannot be drawn is no reason to lose the report of a run
        from pytorch_lightning.utilities import rank_zero_warn

        reason = one_line(str(error)) or type(error).__name__
        rank_zero_warn(f"report: {section.title!r} could not be drawn: {reason}")
        return paragraph(f"could not be drawn: {reason}", "failed")
