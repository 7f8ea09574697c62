"""Figures of mixtures: by layer, over epochs, by class. One colour a normalizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.report import figures
from tasks.report.colors import HEAT_COLOR, OTHER_COLOR, norm_color
from tasks.report.page import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from tasks.ratios.survey import Array, LayerRatios
    from tasks.ratios.table import Epoch

_MOST_NAMES = 60
"""Layers up to which each has its name beside a figure."""
_NAMES = {"both": "", "mean": " (means)", "variance": " (variances)"}


class Album:
    """Puts figures into a page, and writes each as PNG and SVG where there is a folder for them.

    Args:
        folder: Where the files go; None for the page alone.
        suffix: What stands behind the files' names.
    """

    def __init__(self, folder: Path | None = None, suffix: str = "") -> None:
        self.folder, self.suffix = folder, suffix

    def add(self, drawing: Figure, name: str, alt: str, caption: object = "") -> Html:
        """The markup of a figure, which is emptied; `name` is that of its files."""
        if self.folder:
            for kind in ("png", "svg"):
                drawing.savefig(self.folder / f"{name}{self.suffix}.{kind}", dpi=144, facecolor="white")
        return figures.figure(drawing, alt, caption)

    def save_sheet(self, name: str, images: Sequence[Tensor]) -> None:
        """Write pictures (3, H, W) of bytes side by side as PNG."""
        if self.folder is None:
            return
        import torch
        from PIL import Image
        from torchvision.transforms.v2 import functional as F
        from torchvision.utils import make_grid

        side = figures.THUMBNAIL
        scaled = [
            F.resize(F.center_crop(image, [max(image.shape[1:])] * 2), [side, side]) for image in images
        ]
        grid = make_grid(torch.stack(scaled), nrow=6).permute(1, 2, 0).contiguous()
        Image.fromarray(grid.numpy()).save(self.folder / f"{name}{self.suffix}.png")


def columns_of(layers: Sequence[LayerRatios]) -> list[tuple[str, str]]:
    """(mixture, normalizer) pairs that the layers have, in their order."""
    return list(dict.fromkeys((layer.mixture, key) for layer in layers for key in layer.normalizers))


def names_of(layers: Sequence[LayerRatios]) -> list[str]:
    """The layers' names, each once."""
    return list(dict.fromkeys(layer.layer for layer in layers))


def matrix_of(layers: Sequence[LayerRatios]) -> Array:
    """(layers, columns) mean ratios; NaN where a layer has no such normalizer."""
    rows = {name: place for place, name in enumerate(names_of(layers))}
    columns = {pair: place for place, pair in enumerate(columns_of(layers))}
    matrix = np.full((len(rows), len(columns)), np.nan)
    for layer in layers:
        for key, mean in zip(layer.normalizers, layer.mean, strict=True):
            matrix[rows[layer.layer], columns[layer.mixture, key]] = mean
    return matrix


def heat_map(layers: Sequence[LayerRatios], title: str) -> Figure:
    """Layers × normalizers, the mean ratio as depth of colour and as a number."""
    matrix, names, columns = matrix_of(layers), names_of(layers), columns_of(layers)
    drawing, axes = figures.plot(2.0 + 0.7 * len(columns), _height(len(names)) + 0.6)
    axes.imshow(matrix, cmap=figures.heat_colors(), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(False)
    labels = [f"{key}\n{_NAMES[mixture].strip(' ()')}".strip() for mixture, key in columns]
    axes.set_xticks(range(len(columns)), labels, fontsize=7.5)
    for tick, (_, key) in zip(axes.get_xticklabels(), columns, strict=True):
        tick.set(color=norm_color(key), fontweight="bold")
    name_layers(axes, names)
    if len(names) <= _MOST_NAMES:
        for (row, column), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                color = "white" if value > 0.55 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("normalizer", fontsize=9)
    return drawing


def composition(layers: Sequence[LayerRatios], title: str) -> Figure:
    """A bar a layer, made of the mean ratios of its normalizers; two bars for SN's two mixtures."""
    names = names_of(layers)
    mixtures = list(dict.fromkeys(layer.mixture for layer in layers))
    drawing, axes = figures.plot(4.6, _height(len(names)) + 0.9)
    height = 0.84 / len(mixtures)
    for layer in layers:
        place = names.index(layer.layer) + (mixtures.index(layer.mixture) - (len(mixtures) - 1) / 2) * height
        left = 0.0
        for key, mean in zip(layer.normalizers, layer.mean.tolist(), strict=True):
            axes.barh(place, mean, height * 0.95, left, color=norm_color(key))
            left += mean
    name_layers(axes, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="y", visible=False)
    told = "\nupper bar: means, lower bar: variances" if len(mixtures) > 1 else ""
    axes.set_xlabel(f"mean ratio λ{told}", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    color_legend(drawing, {key: norm_color(key) for _, key in columns_of(layers)})
    return drawing


def dynamics(epochs: Sequence[Epoch], mixture: str) -> Figure:
    """Each normalizer's ratio over epochs: mean over layers as a line, their middle half as a band."""
    drawing, axes = figures.plot(4.6, 3.2)
    layers = [[layer for layer in epoch.layers if layer.mixture == mixture] for epoch in epochs]
    places = [epoch.epoch + 1 for epoch in epochs]
    keys = list(dict.fromkeys(key for epoch in layers for _, key in columns_of(epoch)))
    for key in keys:
        values = [[*_ratios_of(key, epoch)] for epoch in layers]
        color, marker = norm_color(key), "o" if len(places) <= 25 else ""
        axes.plot(places, [np.mean(v) for v in values], color=color, marker=marker, markersize=3)
        low, high = ([np.quantile(v, q) for v in values] for q in (0.25, 0.75))
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 1)
    _over_epochs(axes, f"Ratio over epochs{_NAMES[mixture]}", "λ (line: mean over layers)")
    color_legend(drawing, {key: norm_color(key) for key in keys})
    return drawing


def _ratios_of(key: str, layers: Sequence[LayerRatios]) -> Iterator[float]:
    for layer in layers:
        if key in layer.normalizers:
            yield float(layer.mean[layer.normalizers.index(key)])


def layer_dynamics(epochs: Sequence[Epoch], key: str, mixture: str) -> Figure:
    """One normalizer's ratio in every layer over epochs, as depth of colour."""
    names = names_of(epochs[-1].layers)
    matrix = np.full((len(names), len(epochs)), np.nan)
    for column, epoch in enumerate(epochs):
        for layer in epoch.layers:
            if layer.mixture == mixture and key in layer.normalizers and layer.layer in names:
                matrix[names.index(layer.layer), column] = layer.mean[layer.normalizers.index(key)]
    drawing, axes = figures.plot(3.9, _height(len(names)) + 0.9)
    extent = (epochs[0].epoch + 0.5, epochs[-1].epoch + 1.5, len(names) - 0.5, -0.5)
    image = axes.imshow(
        matrix, cmap=figures.heat_colors(), vmin=0, vmax=1, aspect="auto", interpolation="nearest",
        extent=extent,
    )  # fmt: skip
    axes.grid(False)
    bar = drawing.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("mean ratio λ", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    name_layers(axes, names)
    _over_epochs(axes, "", "")
    title = f"{key}{_NAMES[mixture]}"
    axes.set_title(title, fontsize=10, loc="left", color=norm_color(key), fontweight="bold")
    return drawing


def spreads(epochs: Sequence[Epoch]) -> Figure:
    """How far λ is from a constant, over epochs: mean over layers as a line, their range as a band."""
    drawing, axes = figures.plot(4.6, 3.2)
    places = [epoch.epoch + 1 for epoch in epochs]
    values = [[layer.spread for layer in epoch.layers] for epoch in epochs]
    marker = "o" if len(places) <= 25 else ""
    axes.plot(places, [np.mean(v) for v in values], color=HEAT_COLOR, marker=marker, markersize=3)
    axes.fill_between(
        places, [*map(min, values)], [*map(max, values)], color=HEAT_COLOR, alpha=0.15, linewidth=0
    )
    axes.set_ylim(bottom=0)
    _over_epochs(axes, "How much λ differs between samples", "spread (0: one λ for all samples)")
    return drawing


def variance_parts(layers: Sequence[LayerRatios], title: str) -> Figure:
    """The standard deviation of λ by layer, its square divided into between and within the classes."""
    from matplotlib.ticker import MaxNLocator

    drawing, axes = figures.plot(4.6, _height(len(layers)) + 0.9)
    total = np.array([float(np.sqrt((layer.std**2).sum())) for layer in layers])
    between = np.array([layer.between for layer in layers])
    has_classes = not np.isnan(between).all()
    share = np.nan_to_num(between)
    axes.barh(range(len(layers)), total * share, 0.72, color=HEAT_COLOR)
    axes.barh(range(len(layers)), total * (1 - share), 0.72, total * share, color=OTHER_COLOR, alpha=0.55)
    name_layers(axes, [layer.layer for layer in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("std of λ over samples (0: a constant)", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, fontsize=10, loc="left")
    if has_classes:
        parts = {"share of the variance between classes": HEAT_COLOR, "within classes": OTHER_COLOR}
        color_legend(drawing, parts)
    return drawing


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """The layers' names on the left, from input (top) to output; numbers where there are too many."""
    if len(names) <= _MOST_NAMES:
        axes.set_yticks(range(len(names)), [shortened(name) for name in names], fontsize=7)
    else:
        axes.set_ylabel("layer, from input (0) to output", fontsize=9)


def shortened(name: str, most: int = 30) -> str:
    """A name that fits beside a figure: the end of a layer's name says more than its beginning."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def color_legend(drawing: Figure, colors: Mapping[str, str]) -> None:
    """A legend above a figure's axes, one coloured square a name."""
    from matplotlib.patches import Patch

    patches = [Patch(color=color, label=name) for name, color in colors.items()]
    drawing.legend(handles=patches, loc="outside upper right", ncols=4, frameon=False, fontsize=8)


def _height(layers: int) -> float:
    return max(1.2, min(0.19 * layers, 9.5))


def _over_epochs(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(label, fontsize=9)
    axes.tick_params(labelsize=8 if label else 7)
    figures.over_epochs(axes)
