"""Figures and pictures as markup, drawn without a window and without global state."""

from __future__ import annotations

import base64
import io
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.report.colors import HEAT_COLOR, LESS_COLOR, MORE_COLOR
from tasks.report.page import Html, html, join

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from torch import Tensor

THUMBNAIL = 128
"""Longest side of a picture in a page."""
_SMALL = 64
_drawn = 0


def plot(width: float = 3.6, height: float = 2.7) -> tuple[Figure, Axes]:
    """An empty figure of `width` × `height` inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def over_epochs(axes: Axes, size: float = 9) -> None:
    """Make the horizontal axis one of epochs, which are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=size)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def heat_colors() -> LinearSegmentedColormap:
    """From nothing, so that the page shows through, to HEAT_COLOR."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    deep = to_rgb(HEAT_COLOR)
    return LinearSegmentedColormap.from_list("heat", [(*deep, 0.0), (*deep, 1.0)])


def difference_colors() -> LinearSegmentedColormap:
    """From LESS_COLOR over nothing, so that the page shows through, to MORE_COLOR."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    less, more = to_rgb(LESS_COLOR), to_rgb(MORE_COLOR)
    stops = [(0.0, (*less, 1.0)), (0.5, (*less, 0.0)), (0.5, (*more, 0.0)), (1.0, (*more, 1.0))]
    return LinearSegmentedColormap.from_list("difference", stops)


def figure(drawing: Figure, alt: str, caption: object = "") -> Html:
    """A figure as inline SVG whose black ink takes the colour of the page's text.

    Args:
        drawing: The figure; it is emptied.
        alt: What it shows, for those who do not see it.
        caption: Line beneath it.
    """
    global _drawn
    from matplotlib import rc_context
    from matplotlib.text import Text

    _drawn += 1
    for text in drawing.findobj(Text):
        text.set_parse_math(False)  # a class may be called "$x$"
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    # The salt keeps the names of clipping paths apart, as all figures of a page share one name space.
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": f"figure {_drawn}"}):
        # Text stays text in the page, whose reader has the fonts.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        drawing.savefig(buffer, format="svg", transparent=True, dpi=144, metadata=nothing)
    drawing.clear()
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("stroke: #000000", "stroke: currentColor")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html(alt)}"', 1)
    return _captioned(Html(svg), caption)


def picture(image: Tensor, alt: str, caption: object = "", longest: int = THUMBNAIL) -> Html:
    """An image (3, H, W) of levels 0 to 255, at most `longest` pixels wide and high."""
    from PIL import Image

    levels: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    shown = Image.fromarray(levels)
    shown.thumbnail((longest, longest))
    small = max(image.shape[1:]) <= _SMALL  # enlarged by the browser, where JPEG's blocks would show
    data = io.BytesIO()
    shown.save(data, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 80}))
    kind, width, height = "png" if small else "jpeg", shown.width, shown.height
    source = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
    look = ' class="small"' if small else ""
    tag = f'<img{look} src="{source}" alt="{html(alt)}" width="{width}" height="{height}">'
    return _captioned(Html(tag), caption)


def pictures(shown: list[Html]) -> Html:
    """Thumbnails in rows."""
    return Html(f'<div class="pictures">{join(shown)}</div>')


def _captioned(content: Html, caption: object) -> Html:
    below = f"<figcaption>{html(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{content}{below}</figure>")
