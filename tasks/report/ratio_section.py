"""What the report of a run says about its layers: which die, and which normalizers EN, SN and SSN mix."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.report import page
from tasks.report.page import Html, Section

if TYPE_CHECKING:
    from tasks.data import BaseDataModule
    from tasks.ratios.dying import Dying
    from tasks.ratios.figures import Album
    from tasks.ratios.survey import LayerRatios
    from tasks.ratios.table import ClassRatios, Epoch

_SPREAD = (
    "Lines are means over layers; bands hold the middle half of the layers, of the spread all layers. Spread "
    "is the variance of λ over samples, as a share of the largest that its mean allows: 0 where all samples "
    "share one λ (as SN does by construction), 1 where each sample takes one normalizer alone."
)


_CLASSES = (
    "Orange: the class takes more of the normalizer than the mean of the classes; purple: less. First every "
    "layer after the last epoch; then how far the classes have moved since the first; then the layer that "
    "tells them apart most, over epochs. Each has its own scale."
)


def ratio_sections(folder: Path, data: BaseDataModule | None = None) -> list[Section]:
    """The sections on the layers of a run: those that die, and what they mix, where they do either.

    Args:
        folder: Run folder.
        data: The run's data module, for pictures of samples; None for none.
    """
    from tasks.ratios.table import read_dying, read_ratios

    dying = read_dying(folder)
    epochs = [epoch for epoch in read_ratios(folder) if epoch.split == "val"]
    found = []
    if dying:
        found.append(Section("Layers that die", lambda: _dying(dying), at_top=True))
    if epochs:
        found.append(Section("Ratios of the normalizers", lambda: _mixed(folder, epochs, data), at_top=True))
        found.append(Section("Ratios over epochs", lambda: _course(folder, epochs)))
    return found


def _dying(found: Sequence[Dying]) -> Html:
    from tasks.ratios.dying import in_words as dying_in_words

    rows = [[one.layer, one.epoch + 1, f"{one.before:.3g}", f"{one.after:.3g}"] for one in found]
    told = dying_in_words(found)
    header = ["layer", "found after epoch", "deviation at the start", "then"]
    text = page.paragraph(f"{told[0].upper()}{told[1:]}.", "failed")
    return page.join([text, page.table(header, rows, "Layers whose output dies", "lrrr")])


def _mixed(folder: Path, epochs: Sequence[Epoch], data: BaseDataModule | None) -> Html:
    """What each layer mixes at the end, and which samples take what."""
    from tasks.ratios import figures

    layers = epochs[-1].layers
    bars = figures.composition(layers, "What each layer mixes")
    first = figures.Album().add(bars, "composition", "Mean ratio of each normalizer by layer")
    told = page.paragraph(f"{_told(epochs)} {_worth(folder, layers)}".strip())
    return page.join([told, page.grid([first, _samples(folder, layers, data)])])


def _course(folder: Path, epochs: Sequence[Epoch]) -> Html:
    from tasks.ratios import figures
    from tasks.ratios.table import read_by_class

    by_class = read_by_class(folder)
    return page.join([_over_epochs(epochs, figures.Album()), *([_classes(by_class)] if by_class else [])])


def _worth(folder: Path, layers: Sequence[LayerRatios]) -> str:
    """How far the network leans on λ per sample, where that was measured after the run; else what does."""
    from tasks.ratios.table import RATIOS
    from tasks.ratios.worth import SHUFFLE, read_worth, worth_in_words

    if layers[0].kind != "en" or _lost(layers):
        return ""
    path = folder / "ratios" / SHUFFLE
    if path.is_file() and path.stat().st_mtime >= (folder / RATIOS).stat().st_mtime:
        worth = read_worth(path)
        if worth:
            return worth_in_words(worth)
    command = f"python -m tasks.ratios --ckpt {shlex.quote(str(folder))}"
    return f"How far the score leans on the λ of each sample is told by {command}"


def _samples(folder: Path, layers: Sequence[LayerRatios], data: BaseDataModule | None) -> Html:
    """The samples that take least and most of a normalizer, or why there are none to show."""
    from tasks.ratios.by_sample import read_by_sample
    from tasks.ratios.run_figures import extremes
    from tasks.ratios.survey import STATIC, is_static

    if _lost(layers):
        return Html()
    if layers[0].kind != "en":
        return page.card("One mixture for all samples", "SN and SSN choose by layer, not by sample.", "")
    found = read_by_sample(folder)
    ends = None if found is None or is_static(layers) else extremes(found)
    if is_static(layers) or (found is not None and ends is None):
        told = f"Its standard deviation over samples is below {STATIC} everywhere: there are no ends to show."
        return page.card("λ moves in no layer", told, "")
    if found is None or ends is None:
        return page.card("Samples", "λ of single samples was not kept: not every one has its own pass.", "")
    indices = found.indices.tolist()
    shown = [
        (
            name,
            [_sample(data, indices[place], ends.ratio[place], int(found.labels[place])) for place in places],
        )
        for name, places in (("Lowest", ends.lowest), ("Highest", ends.highest))
    ]
    told = (
        f"{ends.layer}: the layer in which λ varies most (standard deviation {ends.std:.2g} over "
        f"{len(indices):,} validation samples). Captions: λ of {ends.normalizer}."
    )
    rows = [page.join([page.subheading(name), _row(parts)]) for name, parts in shown]
    title = f"Which samples take least and most of {ends.normalizer}"
    return page.card(title, told, page.join(rows))


def _sample(data: BaseDataModule | None, index: int, ratio: float, label: int) -> Html:
    from tasks.report import figures

    caption = f"{ratio:.3f}"
    if data is None:
        return page.html(f"sample {index} ({caption}) ")
    from tasks.ratios.sample_figures import picture_of

    named = f" of class {data.class_name(label)}" if label >= 0 else ""
    alt = f"validation sample {data.sample_name('val', index)}{named}, λ {caption}"
    return figures.picture(picture_of(data, "val", index), alt, caption)


def _row(parts: Sequence[Html]) -> Html:
    from tasks.report import figures

    return figures.pictures([*parts])


def _classes(found: ClassRatios) -> Html:
    """Classes × layers after the last epoch, how they moved, and one layer over epochs."""
    from tasks.ratios import figures
    from tasks.ratios import run_figures as drawn

    found_best = drawn.varying(found)
    if found_best is None:
        return Html()
    key, layers, difference, best = found_best
    classes = drawn.shown_classes(difference)
    names = [found.classes[place] for place in classes]
    difference = difference[..., classes]
    album, shown = figures.Album(), []
    last = drawn.classes_by_layer(difference[-1], layers, names, key, f"epoch {found.epochs[-1] + 1}")
    shown.append(album.add(last, "classes", f"Ratio of {key} by class and layer after the last epoch"))
    if len(found.epochs) > 1:
        since = f"since epoch {found.epochs[0] + 1}"
        moved = drawn.classes_by_layer(difference[-1] - difference[0], layers, names, key, since)
        shown.append(album.add(moved, "moved", f"Change of the ratio of {key} by class and layer {since}"))
        one = drawn.classes_by_epoch(difference[:, best], found.epochs, names, key, layers[best])
        shown.append(album.add(one, "epochs", f"Ratio of {key} by class and epoch in {layers[best]}"))
    return page.join(
        [
            page.subheading(f"Classes: {key}, the normalizer whose share tells them apart most"),
            page.paragraph(_CLASSES if len(found.epochs) > 1 else _CLASSES.partition(" First")[0], "note"),
            page.grid(shown),
        ]
    )


def ratios_of_run(epochs: Sequence[Epoch], album: Album) -> Html:
    """Whether λ is one per sample, the mixture by layer after the last epoch, and over epochs."""
    return page.join([page.paragraph(_told(epochs)), _over_epochs(epochs, album)])


def _over_epochs(epochs: Sequence[Epoch], album: Album) -> Html:
    from tasks.ratios import figures

    layers = epochs[-1].layers
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
            page.grid(drawn),
            page.details("Every layer over epochs", page.grid(per_layer)),
            *([page.paragraph(_SPREAD, "note")] if is_exemplar else []),
        ]
    )


def _told(epochs: Sequence[Epoch]) -> str:
    """The outcome in a sentence or two."""
    layers = epochs[-1].layers
    if lost := _lost(layers):
        since = epochs[-1].epoch
        for epoch in reversed(epochs):
            if not _lost(epoch.layers):
                break
            since = epoch.epoch
        where = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
        count = len({layer.layer for layer in layers})
        return (
            f"From epoch {since + 1} on λ was no number in {len(lost)} of {count} layers ({where}): "
            "the training diverged."
        )
    if layers[0].kind != "en":
        return (
            f"{len({layer.layer for layer in layers})} layers, each with one mixture of means and one of "
            "variances for all samples, as of the last validation."
        )
    return f"{layers[0].samples:,} validation samples, epoch {epochs[-1].epoch + 1}: {in_words(layers)}"


def in_words(layers: Sequence[LayerRatios]) -> str:
    """Whether λ is one per sample: in how many layers it varies, how far, and what the classes explain."""
    from tasks.ratios.survey import STATIC

    moving = [layer for layer in layers if layer.std.max() >= STATIC]
    most = max(layers, key=lambda layer: float(layer.std.max()))
    largest = f"{float(most.std.max()):.2g}"
    spread = float(np.mean([layer.spread for layer in layers]))
    if not moving:
        return (
            f"λ is the same for all samples in each of {len(layers)} layers: its standard deviation over "
            f"samples is at most {largest} (spread {spread:.2g}; a constant has 0)."
        )
    where = "all" if len(moving) == len(layers) else f"{len(moving)} of"
    between = [layer.between for layer in moving if not np.isnan(layer.between)]
    share = (
        f" Of its variance there, {100 * np.mean(between):.0f} % lies between the classes." if between else ""
    )
    return (
        f"λ differs between samples in {where} {len(layers)} layers, most in {most.layer} (standard "
        f"deviation {largest}). Its spread is {spread:.2g} as a mean over layers; a constant has 0, one "
        f"normalizer alone for each sample 1.{share}"
    )


def _lost(layers: Sequence[LayerRatios]) -> list[str]:
    """Names of the layers whose λ is no number."""
    return [*dict.fromkeys(layer.layer for layer in layers if np.isnan(layer.mean).any())]
