"""What the report of a run with EN, SN or SSN layers adds: which normalizers they choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.report import page
from tasks.report.page import Html, Section

if TYPE_CHECKING:
    from tasks.ratios.figures import Album
    from tasks.ratios.survey import LayerRatios
    from tasks.ratios.table import Epoch

_SMALL = 0.01
"""Spread below which λ is called nearly the same for all samples: a standard deviation of about 0.05."""
_SPREAD = (
    "Lines are means over layers; bands hold the middle half of the layers, of the spread all layers. Spread "
    "is the variance of λ over samples, as a share of the largest that its mean allows: 0 where all samples "
    "share one λ (as SN does by construction), 1 where each sample takes one normalizer alone."
)


def ratio_sections(folder: Path) -> list[Section]:
    """The section on `ratios.csv` of a run; none where the network has no such layers."""
    from tasks.ratios.table import read_ratios

    epochs = [epoch for epoch in read_ratios(folder) if epoch.split == "val"]
    return [Section("Ratios of the normalizers", lambda: ratios_of_run(epochs))] if epochs else []


def ratios_of_run(epochs: Sequence[Epoch], album: Album | None = None) -> Html:
    """Mixture by layer after the last epoch, over epochs, and whether λ is one per sample."""
    from tasks.ratios import figures

    album, layers = album or figures.Album(), epochs[-1].layers
    is_exemplar = layers[0].kind == "en"
    alt = "Mean ratio of each normalizer"
    title = f"Mean ratio λ by layer, epoch {epochs[-1].epoch + 1}"
    drawn = [album.add(figures.heat_map(layers, title), "last-epoch", f"{alt} by layer")]
    for mixture in dict.fromkeys(layer.mixture for layer in layers):
        alt_of = f"{alt} over epochs, mixture of {mixture}"
        drawn.append(album.add(figures.dynamics(epochs, mixture), f"dynamics-{mixture}", alt_of))
    if is_exemplar:
        drawn.append(album.add(figures.spreads(epochs), "spread", "Spread of λ over epochs"))
    per_layer = [
        album.add(
            figures.layer_dynamics(epochs, key, mixture),
            f"layers-{mixture}-{key}",
            f"{alt} by layer and epoch: {key}",
        )
        for mixture, key in figures.columns_of(layers)
    ]
    return page.join(
        [
            page.paragraph(_told(epochs)),
            page.grid(drawn),
            page.details("Every layer over epochs", page.grid(per_layer)),
            *([page.paragraph(_SPREAD, "note")] if is_exemplar else []),
        ]
    )


def _told(epochs: Sequence[Epoch]) -> str:
    """The outcome in a sentence or two."""
    layers = epochs[-1].layers
    if layers[0].kind != "en":
        return (
            f"{len({layer.layer for layer in layers})} layers, each with one mixture of means and one of "
            "variances for all samples, as of the last validation."
        )
    return f"{len(layers)} layers over {layers[0].samples:,} validation samples: {in_words(layers)}"


def in_words(layers: Sequence[LayerRatios]) -> str:
    """Whether λ is one per sample: its variation over samples, and how much of it the classes explain."""
    spread = float(np.mean([layer.spread for layer in layers]))
    std = float(np.mean([layer.std.max() for layer in layers]))
    between = [layer.between for layer in layers if not np.isnan(layer.between)]
    verdict = "λ is nearly the same for all samples" if spread < _SMALL else "λ differs between samples"
    share = f" Of its variance, {100 * np.mean(between):.1f} % lies between the classes." if between else ""
    return (
        f"{verdict}. Its standard deviation over samples is {std:.4f} and its spread {spread:.2g}, both as "
        f"means over layers; a constant has 0.{share}"
    )
