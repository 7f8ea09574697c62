"""`index.html` of an analysis: what the layers choose, for which samples, in one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tasks.ratios import figures, sample_figures
from tasks.ratios.collect import Collected
from tasks.ratios.figures import Album
from tasks.ratios.space import RatioSpace, ratio_space
from tasks.ratios.table import read_ratios
from tasks.ratios.worth import worth_in_words, worth_table
from tasks.report import page
from tasks.report.page import Html, Section
from tasks.report.ratio_section import ratios_of_run

_THUMBNAILS = 6
_ATYPICAL = 12
_MOST_CLASSES = 20
"""Classes up to which each has its own colour and marker."""

_NORMALIZERS = (
    "Each layer normalizes by a mixture: in takes the statistics of one channel of one sample, ln those of "
    "all channels of one sample, gn those of a group of its channels, bn those of one channel over the "
    "batch. The ratio λ says how much of each. EN chooses λ for every sample; SN and SSN have one λ for all "
    "samples, for means and for variances."
)
NUMBERS = (
    "std of λ",
    "spread",
    "between classes",
    "by chance",
    "score",
    "λ shuffled",
    "λ at its mean",
    "λ = 1/K",
)
"""What is said about how λ varies over the samples of a run, and what that is worth."""
_NUMBERS = (
    "std: standard deviation of λ over samples, of the normalizer that varies most, mean over layers. "
    "spread: variance of λ as a share of the largest that its mean allows; 0 is one λ for all samples, 1 is "
    "a single normalizer for each. between classes: share of the variance of λ that lies between the means "
    "of the classes, and what it would be by chance."
)
_WORTH = (
    "The task's score on the same samples with other ratios in the place of λ. λ of another sample: one "
    "random cycle through the whole split, the same in all layers; the mixtures are as before, but the wrong "
    "samples have them. Each layer's mean λ: one mixture for all samples, as SN has. 1/K: an even mixture. "
    "2 standard errors: what the difference may be off, as other samples of the same kind would differ."
)


def write_analysis(output: Path, runs: Sequence[Collected]) -> None:
    """Write `index.html` and its figures as files.

    Args:
        output: Folder to write into.
        runs: What was read of each run, at least one.
    """
    sections = [
        Section("What was read", partial(_what, runs)),
        Section("Ratios by layer", partial(_by_layer, output, runs)),
    ]
    exemplar = [run for run in runs if run.exemplar]
    if exemplar:
        sections.append(Section("Is λ one per sample?", partial(_per_sample, output, exemplar)))
    for run in runs:
        sections += _run_sections(output, run, f": {run.trained.name}" if len(runs) > 1 else "")
    names = ", ".join(run.trained.name for run in runs)
    page.write_page(output / "index.html", f"Ratios: {names}", sections, page.paragraph(_NORMALIZERS, "lead"))


def _run_sections(output: Path, run: Collected, of: str) -> list[Section]:
    album = Album(output, f"-{run.trained.name}" if of else "")
    sections = []
    folder = run.trained.folder
    epochs = [epoch for epoch in read_ratios(folder) if epoch.split == "val"] if folder else []
    if epochs:
        sections.append(Section(f"During training{of}", partial(ratios_of_run, epochs, album)))
    if any(layer.class_mean is not None for layer in run.exemplar):
        sections.append(Section(f"Classes{of}", partial(_classes, album, run)))
    if run.exemplar:
        space = ratio_space(run.vectors, run.labels)
        sections.append(Section(f"Samples in ratio space{of}", partial(_space, album, run, space)))
        if space:
            sections.append(Section(f"Nearest neighbours{of}", partial(_neighbours, album, run, space)))
            sections.append(Section(f"Most atypical samples{of}", partial(_atypical, album, run, space)))
    return sections


def _what(runs: Sequence[Collected]) -> Html:
    header = ["run", "task", "data set", "network", "norm", "split", "samples", "layers"]
    rows = (
        [
            run.trained.name,
            run.trained.task,
            *run.trained.facts.values(),
            run.split if run.exemplar else "",
            f"{len(run.indices):,}" if run.exemplar else "",
            len(figures.names_of(run.layers)),
        ]
        for run in runs
    )
    return page.table(header, rows, "What was read", "llllllrr")


def _by_layer(output: Path, runs: Sequence[Collected]) -> Html:
    drawn = []
    for run in runs:
        name = run.trained.name
        album = Album(output, f"-{name}" if len(runs) > 1 else "")
        title = f"Mean ratio λ{f', {name}' if len(runs) > 1 else ''}"
        bars, heat = figures.composition(run.layers, title), figures.heat_map(run.layers, title)
        drawn.append(album.add(bars, "composition", f"Mixture of each layer of {name}"))
        drawn.append(album.add(heat, "heat", f"Mean ratio by layer and normalizer of {name}"))
    parts = [page.grid(drawn)]
    if len(runs) > 1:
        parts += [page.subheading("Side by side"), _side_by_side(Album(output), runs)]
    return page.join(parts)


def _side_by_side(album: Album, runs: Sequence[Collected]) -> Html:
    keys = list(dict.fromkeys(key for run in runs for _, key in figures.columns_of(run.layers)))
    static = any(layer.kind != "en" for run in runs for layer in run.layers)
    drawn = []
    for mixture in ("mean", "variance") if static else ("mean",):
        told = f", SN's mixture of {mixture}s" if static else ""
        for key in keys:
            drawing = sample_figures.comparison(runs, key, mixture)
            alt = f"Ratio of {key} over depth by run{told}"
            drawn.append(album.add(drawing, f"compared-{key}-{mixture}", alt, f"{key}{told}" if told else ""))
    return page.grid(drawn)


def _per_sample(output: Path, runs: Sequence[Collected]) -> Html:
    drawn, worth = [], []
    rows = ([run.trained.name, *numbers(run)] for run in runs)
    for run in runs:
        if run.worth:
            header, lines = worth_table(run.worth)
            name = f"{run.trained.name}: " if len(runs) > 1 else ""
            told = page.paragraph(f"{name}{worth_in_words(run.worth)}")
            worth.append(page.join([told, page.table(header, lines, "Score without the choice", "lrrrr")]))
        album = Album(output, f"-{run.trained.name}" if len(runs) > 1 else "")
        drawing = figures.variance_parts(run.exemplar, f"Variation of λ, {run.trained.name}")
        drawn.append(album.add(drawing, "variance", f"Variation of λ by layer of {run.trained.name}"))
    return page.join(
        [
            *worth,
            page.paragraph(_WORTH, "note"),
            page.subheading("How λ varies over samples"),
            page.table(["run", *NUMBERS], rows, "Variation of λ over samples", "lrrrrrrrr"),
            page.paragraph(_NUMBERS, "note"),
            page.grid(drawn),
        ]
    )


def numbers(run: Collected) -> list[str]:
    """What NUMBERS names, of a run."""
    layers = run.exemplar
    std, spread = (float(np.mean(v)) for v in zip(*((x.std.max(), x.spread) for x in layers), strict=True))
    between = [layer.between for layer in layers if not np.isnan(layer.between)]
    classes = 0 if run.labels is None else len(np.unique(run.labels))
    chance = f"{(classes - 1) / (len(run.indices) - 1):.3f}" if between and len(run.indices) > 1 else "–"
    values = [run.worth.own, *(way.value for way in run.worth.ways.values())] if run.worth else [np.nan] * 4
    return [
        f"{std:.5f}",
        f"{spread:.6f}",
        f"{np.mean(between):.3f}" if between else "–",
        chance,
        *("–" if np.isnan(value) else f"{value:.4f}" for value in values),
    ]


def _classes(album: Album, run: Collected) -> Html:
    keys = dict.fromkeys(key for layer in run.exemplar for key in layer.normalizers)
    name = run.trained.data.class_name
    return page.join(
        [
            page.paragraph(
                "Orange: samples of the class take more of the normalizer than others do; purple: less. Mind "
                "the scale, which differs between the figures."
            ),
            page.grid(
                album.add(
                    sample_figures.by_class(run.exemplar, key, name),
                    f"classes-{key}",
                    f"Ratio of {key} by class and layer, against that of all samples",
                )
                for key in keys
            ),
        ]
    )


def _space(album: Album, run: Collected, space: RatioSpace | None) -> Html:
    if space is None:
        return page.paragraph("All samples have the same ratios.")
    groups = [f"group {number + 1}" for number in range(len(space.centres))]
    drawn = [
        album.add(
            sample_figures.scatter(space, space.cluster, groups, "By group (k-means on λ of all layers)"),
            "space-groups",
            "Samples in ratio space by group",
        )
    ]
    labels = run.labels
    if labels is not None and len(np.unique(labels)) <= _MOST_CLASSES:
        classes, places = np.unique(labels, return_inverse=True)
        names = [run.trained.data.class_name(int(label)) for label in classes]
        drawing = sample_figures.scatter(space, places, names, "By class")
        drawn.append(album.add(drawing, "space-classes", "Samples in ratio space by class"))
    told = "A point is a sample, placed by the λ of all its layers: close samples take similar mixtures."
    if space.same_class and space.information is not None:
        same, chance = space.same_class
        told += (
            f" The nearest neighbour is of the same class for {100 * same:.1f} % of the samples "
            f"({100 * chance:.1f} % by chance); groups and classes share {space.information:.3f} of their "
            "information (0 by chance, 1 if they are the same)."
        )
    sheets = [_group(album, run, space, number) for number in range(len(space.centres))]
    return page.join(
        [page.paragraph(told), page.grid(drawn), page.subheading("Samples of each group"), page.grid(sheets)]
    )


def _group(album: Album, run: Collected, space: RatioSpace, number: int) -> Html:
    members = np.flatnonzero(space.cluster == number)
    centre = run.vectors[members].mean(0)
    near = members[np.argsort(np.linalg.norm(run.vectors[members] - centre, axis=1), kind="stable")]
    places = near[:_THUMBNAILS].tolist()
    captions = [sample_figures.sample_name(run, place) for place in places]
    shown = sample_figures.sheet(album, f"group-{number + 1}", run, places, captions)
    return page.card(f"Group {number + 1}", f"{len(members):,} samples; those next to its centre", shown)


def _neighbours(album: Album, run: Collected, space: RatioSpace) -> Html:
    cards = []
    for number, (centre, others) in enumerate(zip(space.centres, space.neighbours.tolist(), strict=True)):
        apart = np.linalg.norm(run.vectors[others] - run.vectors[centre], axis=1)
        captions = ["", *(f"({distance:.4f})" for distance in apart)]
        captions = [
            f"{sample_figures.sample_name(run, place)} {told}".strip()
            for place, told in zip([centre, *others], captions, strict=True)
        ]
        shown = sample_figures.sheet(album, f"neighbours-{number + 1}", run, [centre, *others], captions)
        cards.append(
            page.card(f"Sample {number + 1}", "The sample, then its nearest, with the distance", shown)
        )
    return page.grid(cards)


def _atypical(album: Album, run: Collected, space: RatioSpace) -> Html:
    places = space.atypical[:_ATYPICAL].tolist()
    captions = [f"{sample_figures.sample_name(run, p)} ({space.distance[p]:.3f})" for p in places]
    median = float(np.median(space.distance))
    told = f"The samples farthest from the mean of λ over all layers; the median distance is {median:.4f}."
    return page.join([page.paragraph(told), sample_figures.sheet(album, "atypical", run, places, captions)])
