"""How the benchmarks' pictures look: sizes, each candidate's colour and marker, axes, captions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.report.colors import OTHER_COLOR, norm_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Result = dict[str, Any]
WIDTH, DPI = 9.0, 160
"""Inches and dots an inch: text of 9 points is as large as a README's where it is 900 pixels wide."""
STYLES: dict[str, tuple[str, str, str, bool]] = {
    "BN": ("bn", "o", "-", True),
    "BN compiled": ("bn", "s", "--", False),
    "GN": ("gn", "o", "-", True),
    "SN plain": ("sn", "o", "-", True),
    "EN textbook": ("en", "X", ":", False),
    "EN reference": ("en", "^", "-.", False),
    "EN eager": ("en", "o", "-", True),
    "EN compiled": ("en", "s", "--", True),
    "EN in a compiled network": ("en", "s", "--", False),
    "BN, ReLU": ("bn", "D", ":", False),
    "EN with ReLU": ("en", "D", ":", True),
    "SyncBN": ("bn", "v", "-.", False),
    "EN triton": ("en", "P", "-", True),
    "copy": ("", "_", ":", True),
}
"""Candidate → its normalizer, whose colour it has; marker, line, and whether the marker is filled."""
HATCH = "////"
TITLE, SMALL = 9.5, 8
PALETTE = 128


def style_of(candidate: str) -> tuple[str, str, str, str]:
    """Colour, marker, line and marker's filling of a candidate."""
    norm, marker, line, filled = STYLES.get(candidate, ("", "o", "-", False))
    color = norm_color(norm)
    return color, marker, line, color if filled else "white"


def canvas(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure as wide as a README, with panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False, **options).tolist()
    for axes in (axes for line in panels for axes in line):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=SMALL)
    return figure, panels


def plain_log(axes: Axes, which: str, ticks: list[float] | None = None) -> None:
    """A logarithmic axis whose ticks are written as plain numbers, at `ticks` or where the data are."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def whiskers(row: Row, base: float) -> list[list[float]]:
    """From the median down to p20 and up to p80, in multiples of `base`."""
    return [[(row["ms"] - row["p20"]) / base], [(row["p80"] - row["ms"]) / base]]


def caption(result: Result, more: str = "") -> str:
    """The machine, versions and date that a picture's figures belong to."""
    m = result["machine"]
    threads = f"{m['threads']} thread" + ("s" if m["threads"] != 1 else "")
    memory = f", memory {m['memory']}" if "memory" in m else ""
    return f"{more}{m.get('gpu', m['cpu'])}, {threads}, torch {m['torch']}{memory}, {m['date']}"


def finish(figure: Figure, text: str, columns: int = 0, legend: Axes | None = None) -> None:
    """A legend of `columns` above the panels, and the caption beneath them."""
    if legend is not None:
        handles, labels = legend.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=columns, fontsize=SMALL, frameon=False
        )
    figure.supxlabel(text, fontsize=7, color=OTHER_COLOR)


def save(figure: Figure, target: Path) -> None:
    """Write a picture with a palette, which takes a third of the bytes of one with all colours."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    Image.open(buffer).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(target, optimize=True)
