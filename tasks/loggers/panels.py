"""What a run shows beside its curves, and the same as W&B's own panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_MOST_CLASSES = 100
"""Classes up to which a confusion matrix is shown whole: its table has a row for each pair."""
_MOST_CONFUSED = 200
_RATIOS = "ratios"


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: (classes, classes) numbers by true and by predicted class.
        names: Name of each class.
    """

    counts: NDArray[np.int64]
    names: Sequence[str]


@dataclass(frozen=True)
class Histogram:
    """The distribution of some values, NaN left out."""

    values: NDArray[np.float64]


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        levels: (3, H, W) bytes.
        caption: Line beneath it.
        masks: Classes (H, W) to lay over it, by the name of the mask.
        classes: Name of each class of the masks.
    """

    levels: Tensor
    caption: str = ""
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Rows:
    """A table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Bars:
    """A value for each label, NaN left out.

    Attributes:
        columns: What the labels and the values are.
        values: The value of each label.
    """

    columns: tuple[str, str]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Pictures:
    """Images side by side; not in a table, whose images W&B keeps outside of the run's folder."""

    pictures: Sequence[Picture]


Panel = Confusion | Histogram | Rows | Bars | Pictures


def to_wandb(panel: Panel, name: str) -> Any:
    """The panel as an object of W&B."""
    import wandb

    if isinstance(panel, Confusion):
        return _confusion(panel, name)
    if isinstance(panel, Histogram):
        return wandb.Histogram(panel.values[~np.isnan(panel.values)].tolist())
    if isinstance(panel, Bars):
        known = [[label, value] for label, value in panel.values.items() if not np.isnan(value)]
        return wandb.plot.bar(wandb.Table(columns=[*panel.columns], data=known), *panel.columns, title=name)
    if isinstance(panel, Pictures):
        return [_image(picture) for picture in panel.pictures]
    return wandb.Table(columns=list(panel.columns), data=[list(row) for row in panel.rows])


def ratio_histograms(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """For each normalizer, the histogram over layers of the mean ratios `ratios/<layer>/<normalizer>`."""
    by_normalizer: dict[str, list[float]] = {}
    for name, value in metrics.items():
        group, _, rest = name.partition("/")
        if group == _RATIOS:
            by_normalizer.setdefault(rest.rpartition("/")[2], []).append(float(value))
    if not by_normalizer:
        return {}
    import wandb

    # One range for all, so that the panels compare.
    edges = np.linspace(0, 1, 33)
    return {
        f"{_RATIOS}_over_layers/{normalizer}": wandb.Histogram(np_histogram=np.histogram(values, edges))
        for normalizer, values in by_normalizer.items()
    }


def _confusion(panel: Confusion, name: str) -> Any:
    """W&B's confusion matrix; of many classes, a table of the pairs that are confused most often."""
    import wandb

    names, counts = list(panel.names), panel.counts
    if len(names) > _MOST_CLASSES:
        wrong = counts - np.diag(counts.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED].tolist()
        pairs = [divmod(place, len(names)) for place in order]
        rows = [[names[true], names[other], int(wrong[true, other])] for true, other in pairs]
        return wandb.Table(columns=["true", "predicted", "count"], data=[row for row in rows if row[2]])
    cells = [
        [names[true], names[predicted], int(counts[true, predicted])]
        for true in range(len(names))
        for predicted in range(len(names))
    ]
    # As wandb.plot.confusion_matrix, which wants every single prediction in place of their counts.
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells),
        {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        {"title": name},
    )


def _image(picture: Picture) -> Any:
    import wandb

    # As bytes: W&B would cast levels in [0, 1] to 0 and 1, which is black.
    levels = picture.levels.permute(1, 2, 0).contiguous().numpy()
    labels = dict(enumerate(picture.classes))
    masks = {
        name: {"mask_data": mask, "class_labels": labels} if labels else {"mask_data": mask}
        for name, mask in picture.masks.items()
    }
    return wandb.Image(levels, caption=picture.caption or None, masks=masks or None)
