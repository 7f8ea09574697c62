"""The table at the end of a command."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """Print a two-column table."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    # A path folded into two lines cannot be copied: let it run on.
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    width = max(map(len, rows), default=0) + max(map(len, rows.values()), default=0) + 7
    console = Console()
    if console.width < width:
        console = Console(width=width)
    console.print(table)


def duration(seconds: float) -> str:
    """'1 h 02 min', '3 min 05 s' or '12.3 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def fraction(value: float) -> str:
    """A metric in [0, 1] with four digits."""
    return f"{value:.4f}"
