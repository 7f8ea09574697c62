"""Figures and pictures of samples: by class, in ratio space, as sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.data import SeededDataset
from tasks.ratios.figures import Album, shortened
from tasks.report import figures
from tasks.report.colors import norm_color
from tasks.report.page import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from tasks.data import BaseDataModule
    from tasks.ratios.collect import Collected
    from tasks.ratios.space import RatioSpace
    from tasks.ratios.survey import LayerRatios

_SHADES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a7f87")
_MARKERS = "os^Dv"
_LINES = ("-", "--", ":", "-.")
_MOST_CLASSES = 30
_MOST_POINTS = 3000


def by_class(layers: Sequence[LayerRatios], key: str, name: Callable[[int], str]) -> Figure:
    """Classes × layers: a class's mean ratio of one normalizer, less that of all samples."""
    shown = [layer for layer in layers if key in layer.normalizers and layer.class_mean is not None]
    matrix = np.stack([_difference(layer, key) for layer in shown], 1)
    classes = _most_different(matrix)
    matrix = matrix[classes]
    drawing, axes = figures.plot(max(3.6, 1.9 + 0.17 * len(shown)), 1.7 + 0.17 * len(classes))
    limit = max(float(np.abs(matrix).max()), 1e-6)
    image = axes.imshow(
        matrix, cmap=figures.difference_colors(), vmin=-limit, vmax=limit, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.grid(False)
    axes.set_yticks(range(len(classes)), [shortened(name(int(c)), 18) for c in classes], fontsize=7)
    if len(shown) <= 60:
        names = [shortened(layer.layer, 22) for layer in shown]
        axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=7)
    axes.set_xlabel("layer, from input to output", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    axes.set_title(key, fontsize=10, loc="left", color=norm_color(key), fontweight="bold")
    bar = drawing.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("λ of the class − λ of all", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return drawing


def _difference(layer: LayerRatios, key: str) -> NDArray[np.float64]:
    column = layer.normalizers.index(key)
    means = np.empty((0, 1)) if layer.class_mean is None else layer.class_mean
    return np.asarray(means[:, column] - layer.mean[column])


def _most_different(matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """The classes with samples; of more than can be shown, those that differ most from the others."""
    known = np.flatnonzero(~np.isnan(matrix).any(1))
    if len(known) <= _MOST_CLASSES:
        return known
    order = np.argsort(-np.abs(matrix[known]).sum(1), kind="stable")[:_MOST_CLASSES]
    return np.sort(known[order])


def scatter(space: RatioSpace, groups: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Samples in the plane of their ratios' two largest directions, a colour a group."""
    from matplotlib.lines import Line2D

    drawing, axes = figures.plot(4.8, 4.0)
    shown = np.arange(0, len(groups), -(-len(groups) // _MOST_POINTS))
    handles = []
    for number, name in enumerate(names):
        color, marker = _SHADES[number % len(_SHADES)], _MARKERS[number // len(_SHADES) % len(_MARKERS)]
        own = shown[groups[shown] == number]
        style = {"color": color, "marker": marker, "linestyle": "", "markersize": 4, "alpha": 0.75}
        # As pixels: thousands of shapes would make the page heavy.
        axes.plot(*space.place[own].T, rasterized=True, markeredgewidth=0, **style)  # type: ignore[arg-type]
        handles.append(Line2D([], [], label=shortened(name, 14), **style))  # type: ignore[arg-type]
    drawing.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    first, second = (f"{100 * share:.0f} %" for share in space.share)
    axes.set_xlabel(f"1st direction of λ ({first} of the variance)", fontsize=9)
    axes.set_ylabel(f"2nd direction ({second})", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=10, loc="left")
    return drawing


def sample_name(found: Collected, place: int) -> str:
    """What tells a sample of a sheet: its class, else its name."""
    data = found.trained.data
    if found.labels is None or found.labels[place] < 0:
        return shortened(data.sample_name(found.split, int(found.indices[place])), 18)
    return shortened(data.class_name(int(found.labels[place])), 18)


def sheet(album: Album, name: str, found: Collected, places: Sequence[int], captions: Sequence[str]) -> Html:
    """Thumbnails of samples in a row, and the same as a PNG file."""
    data = found.trained.data
    images = [picture_of(data, found.split, int(found.indices[place])) for place in places]
    album.save_sheet(name, images)
    samples = (data.sample_name(found.split, int(found.indices[place])) for place in places)
    return figures.pictures(
        [
            figures.picture(image, f"sample {sample}: {caption}", caption)
            for image, sample, caption in zip(images, samples, captions, strict=True)
        ]
    )


def picture_of(data: BaseDataModule, split: str, index: int) -> Tensor:
    """A sample as bytes (3, H, W): as the data module shows it, else as the network sees it."""
    import torch

    if picture := getattr(data, "picture", None):
        shown: Tensor = picture(split, index)
        return shown
    image = SeededDataset(data.examples(split), data.seed)[0, index][0]
    bytes_of: Callable[[Tensor], Tensor] = data.as_bytes  # type: ignore[attr-defined]
    return image if image.dtype == torch.uint8 else bytes_of(image)


def comparison(runs: Sequence[Collected], key: str, mixture: str) -> Figure:
    """One normalizer's mean ratio from the first layer to the last, a line a run, in its colour."""
    drawing, axes = figures.plot(4.6, 3.2)
    color = norm_color(key)
    for number, run in enumerate(runs):
        layers = [x for x in run.layers if x.mixture in ("both", mixture) and key in x.normalizers]
        if not layers:
            continue
        means = np.array([layer.mean[layer.normalizers.index(key)] for layer in layers])
        std = np.array([layer.std[layer.normalizers.index(key)] for layer in layers])
        depth = np.linspace(0, 1, len(layers))
        style = {"linestyle": _LINES[number % len(_LINES)], "marker": _MARKERS[number % len(_MARKERS)]}
        name = shortened(run.trained.name)
        axes.plot(depth, means, color=color, markersize=4, label=name, **style)  # type: ignore[arg-type]
        axes.fill_between(depth, means - std, means + std, color=color, alpha=0.2, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_xlabel("depth of the layer (0: input, 1: output)", fontsize=9)
    axes.set_ylabel("mean ratio λ (band: ± std)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_title(key, fontsize=10, loc="left", color=color, fontweight="bold")
    drawing.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8, handlelength=4)
    return drawing
