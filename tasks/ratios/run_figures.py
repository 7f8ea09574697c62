"""Which samples take least and most of a normalizer in a run, and its classes over epochs.

Legend: E epochs, P pairs of layer and normalizer, C classes, L layers, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.ratios.figures import shortened
from tasks.ratios.survey import STATIC
from tasks.report import figures
from tasks.report.colors import norm_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.ratios.by_sample import SampleRatios
    from tasks.ratios.table import ClassRatios

SHOWN = 8
"""Samples at each end."""
_MOST_CLASSES = 30
_MOST_NAMES = 60


class Extremes(NamedTuple):
    """The samples that take least and most of a normalizer.

    Attributes:
        layer: The layer in which λ varies most.
        normalizer: That of its normalizers whose ratio varies most.
        std: Standard deviation of the ratio over the samples.
        lowest: Places of the samples with the lowest ratios, ascending.
        highest: Places of those with the highest, ascending.
        ratio: (S) the ratio of each sample.
    """

    layer: str
    normalizer: str
    std: float
    lowest: list[int]
    highest: list[int]
    ratio: NDArray[np.float64]


def extremes(found: SampleRatios) -> Extremes | None:
    """The two ends of the ratio that varies most over samples; None where none varies.

    "bn" is taken where it varies as much as any other in its layer, as with two normalizers.
    """
    ratios = found.vectors.astype(np.float64)
    std = ratios.std(0)
    if len(ratios) < 2 or not std.size or std.max() < STATIC:
        return None
    place = int(std.argmax())
    layer = found.columns[place][0]
    if (layer, "bn") in found.columns:
        of_bn = found.columns.index((layer, "bn"))
        place = of_bn if std[of_bn] >= (1 - 1e-6) * std[place] else place
    ratio = ratios[:, place]
    order = np.argsort(ratio, kind="stable")
    count = min(SHOWN, len(order) // 2)
    return Extremes(
        *found.columns[place], float(std[place]), order[:count].tolist(), order[-count:].tolist(), ratio
    )


class Varying(NamedTuple):
    """The normalizer whose ratio tells classes apart best.

    Attributes:
        normalizer: Its key.
        layers: The L layers that have it.
        difference: (E, L, C) a class's mean ratio less the mean over classes.
        best: The place of the layer in which it differs most after the last epoch.
    """

    normalizer: str
    layers: list[str]
    difference: NDArray[np.float64]
    best: int


def varying(found: ClassRatios) -> Varying | None:
    """The normalizer that differs most between the classes after the last epoch.

    None with one class, or where λ of a layer was no number in an epoch, as after a divergence.
    """
    if len(found.classes) < 2 or np.isnan(found.means).all(2).any():
        return None
    centred = found.means - np.nanmean(found.means, 2, keepdims=True)
    std = np.sqrt(np.nanmean(np.square(centred[-1]), 1))
    key = found.columns[int(np.nanargmax(std))][1]
    places = [place for place, (_, normalizer) in enumerate(found.columns) if normalizer == key]
    layers = [found.columns[place][0] for place in places]
    return Varying(key, layers, centred[:, places], int(np.nanargmax(std[places])))


def shown_classes(difference: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of the classes of (…, C) those that can be shown: all, or those that differ most."""
    size = np.nanmax(np.abs(difference.reshape(-1, difference.shape[-1])), 0)
    if len(size) <= _MOST_CLASSES:
        return np.arange(len(size))
    return np.sort(np.argsort(-size, kind="stable")[:_MOST_CLASSES])


def classes_by_layer(
    matrix_LC: NDArray[np.float64], layers: Sequence[str], names: Sequence[str], key: str, title: str
) -> Figure:
    """Classes × layers, as depth of colour from purple (less) to orange (more)."""
    drawing, axes = figures.plot(max(3.6, 1.9 + 0.17 * len(layers)), 1.9 + 0.17 * len(names))
    _differences(drawing, axes, matrix_LC.T, names, None, "difference of λ")
    if len(layers) <= _MOST_NAMES:
        axes.set_xticks(range(len(layers)), [shortened(name, 22) for name in layers], rotation=90, fontsize=7)
    axes.set_xlabel("layer, from input to output", fontsize=9)
    axes.set_title(f"{key}: {title}", fontsize=10, loc="left", color=norm_color(key), fontweight="bold")
    return drawing


def classes_by_epoch(
    matrix_EC: NDArray[np.float64], epochs: Sequence[int], names: Sequence[str], key: str, layer: str
) -> Figure:
    """Classes × epochs of one layer."""
    drawing, axes = figures.plot(3.9, 1.7 + 0.17 * len(names))
    extent = (epochs[0] + 0.5, epochs[-1] + 1.5, len(names) - 0.5, -0.5)
    _differences(drawing, axes, matrix_EC.T, names, extent, "difference of λ")
    figures.over_epochs(axes)
    title = f"{key} in {shortened(layer, 24)}"
    axes.set_title(title, fontsize=10, loc="left", color=norm_color(key), fontweight="bold")
    return drawing


def _differences(
    drawing: Figure, axes: Axes, matrix: NDArray[np.float64], names: Sequence[str], extent: Any, label: str
) -> None:
    limit = max(float(np.nanmax(np.abs(matrix))), 1e-6)
    image = axes.imshow(
        matrix, cmap=figures.difference_colors(), vmin=-limit, vmax=limit, aspect="auto",
        interpolation="nearest", extent=extent,
    )  # fmt: skip
    axes.grid(False)
    axes.set_yticks(range(len(names)), [shortened(name, 18) for name in names], fontsize=7)
    axes.set_ylabel("class", fontsize=9)
    bar = drawing.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
