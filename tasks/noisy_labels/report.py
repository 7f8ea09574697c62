"""What the report of a run with noisy labels adds: memorised labels, losses, the most suspicious samples."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks.noisy_labels.outcome import Outcome
from tasks.noisy_labels.samples import SampleRecord
from tasks.noisy_labels.suspects import SUSPECTS, ranking
from tasks.report import Html, Section, figures, page
from tasks.report.classes import short
from tasks.report.facts import METRICS
from tasks.report.metrics import read_metrics

_SHOWN = 24
_BINS = 40
_CLEAN, _WRONG = "#0072b2", "#d55e00"


def noise_sections(folder: Path | None, samples: SampleRecord, outcome: Outcome, data: Any) -> list[Section]:
    """The sections of a run.

    Args:
        folder: Folder of the run.
        samples: What training saw of the samples.
        outcome: Best and last values.
        data: The data module, with given and, where known, true labels.
    """
    if not samples.seen.any():
        return []
    sections = [Section("Noisy labels", partial(_summary, outcome))]
    if data.true_labels is not None and folder:
        sections.append(Section("Wrong labels over epochs", partial(_memorised, folder)))
    return [
        *sections,
        Section("Loss of the training samples", partial(_losses, samples, data)),
        Section("Most suspicious labels", partial(_suspects, samples, data)),
    ]


def _summary(outcome: Outcome) -> Html:
    parts = [page.facts(outcome.rows().items())]
    if any(name.startswith("train/noise_auroc") for name in outcome.noise):
        note = (
            "AUROC: probability that a wrong label has the higher score; 0.5 tells nothing. "
            "Ratios: distance of a sample's λ from the mean of its given class, over all EN layers."
        )
        parts.append(page.paragraph(note, "note"))
    return page.join(parts)


def _memorised(folder: Path) -> Html:
    curves = read_metrics(folder / METRICS)
    drawing, axes = figures.plot(5.2, 3.2)
    told = []
    lines = {
        "train/memorised": ("wrong labels that are predicted", _WRONG),
        "train/clean_fit": ("right labels that are predicted", _CLEAN),
    }
    for name, (label, color) in lines.items():
        if name in curves:
            curve = curves[name].thinned()
            axes.plot(curve.epochs, curve.values, label=label, color=color, marker="o", markersize=3)
            told.append(f"{label}: {curve.values[-1]:.4f} at the end")
    figures.over_epochs(axes, 10)
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=9)
    return figures.figure(drawing, "; ".join(told), "Predictions in the mode of training.")


def _losses(samples: SampleRecord, data: Any) -> Html:
    known = samples.seen & np.isfinite(samples.loss)
    losses = samples.loss[known]
    edges = np.linspace(0, max(float(np.quantile(losses, 0.99)), 1e-3), _BINS + 1).tolist()
    drawing, axes = figures.plot(5.2, 3.2)
    if data.true_labels is None:
        parts = [(losses, "all labels", _CLEAN)]
    else:
        wrong = (data.given_labels != data.true_labels)[known]
        parts = [(losses[~wrong], "right labels", _CLEAN), (losses[wrong], "wrong labels", _WRONG)]
    for values, label, color in parts:
        axes.hist(values.clip(max=edges[-1]), bins=edges, color=color, alpha=0.6, label=label)
    axes.set_xlabel("cross-entropy with the given label, last epoch")
    axes.set_ylabel("samples")
    axes.legend(frameon=False, fontsize=9)
    means = "; ".join(f"{label}: mean {values.mean():.3f}" for values, label, _ in parts if len(values))
    return figures.figure(
        drawing, f"Histogram of the loss. {means}", f"{means}. The highest 1 % in the last bin."
    )


def _suspects(samples: SampleRecord, data: Any) -> Html:
    shown = [int(n) for n in ranking(samples.score)[:_SHOWN] if samples.predicted[n] >= 0]
    note = f"Captions: given label → predicted class (suspicion). All samples are ranked in {SUSPECTS}."
    if data.true_labels is not None:
        note += " In square brackets the true class."
    return page.join(
        [page.paragraph(note, "note"), figures.pictures([_suspect(n, samples, data) for n in shown])]
    )


def _suspect(n: int, samples: SampleRecord, data: Any) -> Html:
    given, predicted = (data.class_name(int(labels[n])) for labels in (data.given_labels, samples.predicted))
    true = "" if data.true_labels is None else f" [{short(data.class_name(int(data.true_labels[n])))}]"
    return figures.picture(
        data.picture("train", n),
        f"sample {data.sample_name('train', n)}: labelled {given}, predicted {predicted}",
        f"{short(given)} → {short(predicted)} ({samples.score[n]:.2f}){true}",
    )
