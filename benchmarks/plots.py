"""Pictures of what was measured, for the documentation.

    python -m benchmarks.plots [--only layer saved network growth] [--to docs/images]

Draws <name>.png from results/*.json: time of a layer in multiples of BatchNorm's, its memory, whole
networks, and growth. What has no result is left out, and said. Each picture carries the machine and the date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import growth, measure
from benchmarks.drawing import (
    HATCH,
    SMALL,
    TITLE,
    Result,
    Row,
    canvas,
    caption,
    finish,
    plain_log,
    save,
    style_of,
    whiskers,
)
from tasks.report.colors import OTHER_COLOR, norm_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def draw_layer(results: dict[str, Result]) -> Figure:
    """Time of each candidate by shape, a panel a memory format, a dot a candidate."""
    rows: list[Row] = results["layer"]["rows"]
    shapes = list(dict.fromkeys((r["channels"], r["size"]) for r in rows))
    layouts = list(dict.fromkeys(r["layout"] for r in rows))
    names = [name for name in dict.fromkeys(r["candidate"] for r in rows) if name != "BN"]
    figure, panels = canvas(len(layouts), 1, 1.2 + 2.7 * len(layouts), sharex=True)
    for layout, [axes] in zip(layouts, panels, strict=True):
        plain_log(axes, "y")
        cells = {(r["channels"], r["size"], r["candidate"]): r for r in rows if r["layout"] == layout}
        for k, name in enumerate(names):
            color, marker, _, filling = style_of(name)
            at = -0.4 + 0.8 * (k + 0.5) / len(names)
            for i, shape in enumerate(shapes):
                if (row := cells.get((*shape, name))) is None:
                    continue
                base = cells[(*shape, "BN")]["ms"]
                axes.errorbar(
                    i + at, row["ms"] / base, yerr=whiskers(row, base), fmt=marker, color=color,
                    markerfacecolor=filling, markersize=4.5, linewidth=0.8, label=name if i == 0 else None,
                )  # fmt: skip
        axes.axhline(1, color=norm_color("bn"), linewidth=1, label="BN")
        for i in range(1, len(shapes)):
            axes.axvline(i - 0.5, color=OTHER_COLOR, alpha=0.25, linewidth=0.6)
        axes.grid(axis="x", visible=False)
        axes.set_title(layout, loc="left", fontsize=TITLE)
        axes.set_ylabel("time, × BN", fontsize=SMALL)
        axes.set_xlim(-0.5, len(shapes) - 0.5)
        axes.set_xticks(range(len(shapes)), [f"{c}×{s}²" for c, s in shapes])
    more = f"Forward and backward of one layer, batch {rows[0]['batch']}: median, 20th to 80th percentile. "
    finish(figure, caption(results["layer"], more), columns=6, legend=panels[0][0])
    return figure


def draw_saved(results: dict[str, Result]) -> Figure:
    """Bytes that a candidate saves and holds at once, in multiples of X: a range over the shapes."""
    rows: list[Row] = results["layer"]["rows"]
    names = list(dict.fromkeys(r["candidate"] for r in rows))[::-1]
    figure, [panels] = canvas(1, 2, 0.9 + 0.27 * len(names), sharey=True)
    titles = {"saved": "saved for the backward", "peak": "held at once"}
    for (key, title), axes in zip(titles.items(), panels, strict=True):
        for i, name in enumerate(names):
            values = [r[key] for r in rows if r["candidate"] == name]
            low, high = min(values), max(values)
            color, _, _, filling = style_of(name)
            hatch = None if filling == color else HATCH
            axes.barh(i, low, 0.62, color=filling, edgecolor=color, hatch=hatch, linewidth=0.8)
            axes.plot([low, high], [i, i], color="black", linewidth=1)
            text = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}–{high:.2f}"
            axes.annotate(
                text, (high, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        axes.set_title(title, loc="left", fontsize=TITLE)
        axes.set_xlabel("bytes / bytes of X", fontsize=SMALL)
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
    more = "Smallest (bar) to largest (line) over the shapes and memory formats. "
    finish(figure, caption(results["layer"], more))
    return figure


def draw_network(results: dict[str, Result]) -> Figure:
    """Time of whole networks, a panel a mode, eager and compiled."""
    from matplotlib.patches import Patch

    kinds = {title: results[name] for name, title in NETWORKS.items() if name in results}
    rows: list[Row] = [row | {"kind": title} for title, result in kinds.items() for row in result["rows"]]
    modes, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("mode", "candidate"))
    figure, panels = canvas(len(modes), 1, 1.2 + 2.2 * len(modes), sharex=True)
    for mode, [axes] in zip(modes, panels, strict=True):
        groups = list(dict.fromkeys((r["network"], r["kind"]) for r in rows if r["mode"] == mode))
        for i, group in enumerate(groups):
            of = [r for r in rows if (r["network"], r["kind"]) == group and r["mode"] == mode]
            draw_bars(axes, i, of)
        axes.axhline(1, color=norm_color("bn"), linewidth=1)
        axes.grid(axis="x", visible=False)
        axes.set_title(mode, loc="left", fontsize=TITLE)
        axes.set_ylabel("time, × bn the same way", fontsize=SMALL)
        axes.set_xticks(range(len(groups)), ["\n".join(group) for group in groups])
        axes.margins(y=0.12)
    handles = [Patch(**_filling(name)) for name in names[1:]]
    figure.legend(
        handles, names[1:], loc="outside upper center", ncols=len(names), fontsize=SMALL, frameon=False
    )
    told = {
        title: caption(result, f"batch {result['rows'][0]['batch']} at {result['rows'][0]['size']}². ")
        for title, result in kinds.items()
    }
    same = len(set(told.values())) == 1
    lines = [f"{'' if same else f'{title}: '}{text}" for title, text in told.items()]
    finish(figure, "\n".join(dict.fromkeys(lines)))
    return figure


def draw_bars(axes: Axes, at: float, rows: list[Row]) -> None:
    """Bars around `at` of all candidates but the first, in multiples of its time."""
    base, count = rows[0]["ms"], len(rows) - 1
    width = 0.8 / max(count, 4)
    for k, row in enumerate(rows[1:]):
        x, height = at + width * (k + 0.5 - count / 2), row["ms"] / base
        axes.bar(
            x, height, width, yerr=whiskers(row, base), error_kw={"linewidth": 0.8},
            **_filling(row["candidate"]),
        )  # fmt: skip
        axes.annotate(
            f"{height:.2f}", (x, row["p80"] / base), xytext=(0, 2), textcoords="offset points",
            ha="center", fontsize=7,
        )  # fmt: skip


def _filling(name: str) -> dict[str, Any]:
    hatch = HATCH if "fused" in name else None
    return {"facecolor": norm_color(name.split()[0]), "edgecolor": "white", "hatch": hatch}


NETWORKS = {"network": "eager", "network-compiled": "compiled"}
"""Results of whole networks, and what they are called."""


_FIXED = ("normalizers", "depth")
"""Factors that leave the input's sizes as they are: of one layer, and of a stack."""


def draw_growth(results: dict[str, Result]) -> Figure:
    """Time and memory as each factor grows, a column a factor, with a line that is linear."""
    rows: list[Row] = results["growth"]["rows"]
    factors = list(dict.fromkeys(r["factor"] for r in rows))
    names = list(dict.fromkeys(r["candidate"] for r in rows))
    figure, panels = canvas(2, len(factors), 4.6, sharex="col")
    for column, factor in enumerate(factors):
        of_factor = [r for r in rows if r["factor"] == factor]
        values = list(dict.fromkeys(r["value"] for r in of_factor))
        for line, (key, unit, title) in enumerate(
            (("ms", 1.0, "time, ms"), ("peak", 2**20, "peak memory, MiB"))
        ):
            axes = panels[line][column]
            for k, name in enumerate(names):
                of = [r for r in of_factor if r["candidate"] == name]
                color, marker, dashes, filling = style_of(name)
                x, y = [r["value"] for r in of], [r[key] / unit for r in of]
                if key == "ms" and of:
                    axes.fill_between(
                        x,
                        [r["p20"] for r in of],
                        [r["p80"] for r in of],
                        color=color,
                        alpha=0.15,
                        linewidth=0,
                    )
                # Equal bytes lie upon each other: the first candidates are drawn broad, to be seen beneath.
                broad = 0 if key == "ms" else 0.7 * (len(names) - 1 - k)
                axes.plot(
                    x, y, dashes, marker=marker, color=color, markerfacecolor=filling,
                    markersize=3.5 + broad, linewidth=1.2 + broad, label=name,
                )  # fmt: skip
            linear_guide(axes, factor, values, [r[key] / unit for r in of_factor])
            plain_log(axes, "x", thinned(values))
            plain_log(axes, "y")
            if column == 0:
                axes.set_ylabel(title, fontsize=SMALL)
        panels[0][column].set_title(factor, loc="left", fontsize=TITLE)
    fixed = {f"{r['batch']}×{r['channels']}×{r['resolution']}²" for r in rows if r["factor"] in _FIXED}
    more = f"Forward and backward on {', of stacks on '.join(sorted(fixed))}, but for what grows; "
    more += "grey: linear in the work, of a resolution in its pixels.\n"
    finish(figure, caption(results["growth"], more), columns=len(names), legend=panels[0][0])
    return figure


def thinned(values: list[int], most: int = 4) -> list[float]:
    """At most `most` of the values, evenly spaced and the largest among them."""
    step = -(-len(values) // most)
    return [float(value) for value in values[::-1][::step][::-1]]


def linear_guide(axes: Axes, factor: str, values: list[int], costs: list[float]) -> None:
    """A line in proportion to the work, through the largest value and below every cost there."""
    amounts = [growth.amount(factor, value) for value in values]
    top = min(costs[-len(costs) // len(values) :]) * 0.6
    axes.plot(values, [top * a / amounts[-1] for a in amounts], color=OTHER_COLOR, linewidth=0.9, alpha=0.8)


PLOTS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Result]], Figure]]] = {
    "layer": (("layer",), draw_layer),
    "saved": (("layer",), draw_saved),
    "network": (tuple(NETWORKS), draw_network),
    "growth": (("growth",), draw_growth),
}
"""Picture → the results any one of which it needs, and what draws it."""


def main() -> None:
    """Draw what has a result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PLOTS), default=list(PLOTS))
    parser.add_argument("--to", type=Path, default=IMAGES, help="folder of the pictures")
    args = parser.parse_args()
    for picture in args.only:
        names, draw = PLOTS[picture]
        paths = {name: measure.RESULTS / f"{name}.json" for name in names}
        found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
        if not found:
            print(f"{picture}: left out, as there is no {' or '.join(p.name for p in paths.values())}")
            continue
        args.to.mkdir(parents=True, exist_ok=True)
        target = args.to / f"{picture}.png"
        save(draw(found), target)
        print(f"written: {target}")


if __name__ == "__main__":
    main()
