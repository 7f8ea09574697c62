"""`suspects.csv`: every training sample, ranked by how likely its label is wrong.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.noisy_labels.noise import Labels
from tasks.tables import write_table

SUSPECTS = "suspects.csv"
ScoreKind = Literal["self_confidence", "normalized_margin"]


def label_scores(p_NC: Tensor, given_N: Tensor, kind: ScoreKind = "normalized_margin") -> Tensor:
    """`suspicion` of a batch (N), unchecked, wherever it is computed."""
    own_N1 = p_NC.gather(1, given_N[:, None])
    if kind == "self_confidence":
        return 1 - own_N1[:, 0]
    others_NC = p_NC.scatter(1, given_N[:, None], -torch.inf)
    return (1 - own_N1[:, 0] + others_NC.amax(dim=1)) / 2


def suspicion(
    probabilities_NC: NDArray[np.floating], given: Labels, kind: ScoreKind = "normalized_margin"
) -> NDArray[np.float64]:
    """How likely each label is wrong, in [0, 1].

    "self_confidence": 1 − p_y. "normalized_margin": (1 − p_y + max_{c ≠ y} p_c) / 2. Both are 1 minus the
    label quality of the same name in Northcutt et al., arXiv:1911.00068. A network that has memorised the
    labels trusts them: take predictions from early in training or for samples that it was not trained on, or
    the average of the scores over epochs. A batch at a time will do, as the rows are independent.

    Args:
        probabilities_NC: Predicted probabilities.
        given: (N) given labels.
        kind: The score.

    Raises:
        ValueError: The shapes do not fit, a label is out of range, a probability is not a number, or the kind
            is unknown.
    """
    p_NC = np.asarray(probabilities_NC, np.float64)
    if p_NC.ndim != 2 or p_NC.shape[1] < 2 or given.shape != p_NC.shape[:1]:
        raise ValueError(
            f"probabilities and labels: expected shapes (N, C) and (N), got {p_NC.shape} and {given.shape}"
        )
    if len(given) and not 0 <= given.min() <= given.max() < p_NC.shape[1]:
        raise ValueError(f"labels: expected 0 to {p_NC.shape[1] - 1}, got {given.min()} to {given.max()}")
    broken = np.count_nonzero(~np.isfinite(p_NC))
    if broken:
        raise ValueError(f"probabilities: expected finite numbers, got {broken} others")
    if kind not in get_args(ScoreKind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(ScoreKind))}, got {kind!r}")
    scores = label_scores(torch.tensor(p_NC), torch.tensor(given, dtype=torch.int64), kind)
    return np.asarray(scores.numpy())


def ranking(score: NDArray[np.floating]) -> NDArray[np.int64]:
    """Numbers (N) of the samples, the most suspicious first, equal ones in their order."""
    return np.argsort(-score, kind="stable").astype(np.int64)


def write_suspects(
    path: Path,
    given: Labels,
    predicted: Labels,
    score: NDArray[np.floating],
    path_of: Callable[[int], str],
    class_name: Callable[[int], str] = str,
    true: Labels | None = None,
) -> None:
    """Write `sample,given,predicted,score,path[,true]` for every sample, the most suspicious first.

    Args:
        path: File to write.
        given: (N) given labels.
        predicted: (N) predicted classes; below 0 for none.
        score: (N) see `suspicion`.
        path_of: Number of a sample ↦ its file, or what else names it.
        class_name: Class ↦ its name.
        true: (N) true labels, where they are known.

    Raises:
        ValueError: The numbers of samples differ.
    """
    columns = [given, predicted, score, *([] if true is None else [true])]
    if len({column.shape for column in columns}) > 1:
        shapes = ", ".join(str(column.shape) for column in columns[:-1])
        raise ValueError(f"suspects: expected equal shapes, got {shapes} and {columns[-1].shape}")

    def name(label: int) -> str:
        return class_name(label) if label >= 0 else ""

    rows = (
        [
            n,
            name(int(given[n])),
            name(int(predicted[n])),
            f"{score[n]:.6f}",
            path_of(n),
            *([] if true is None else [name(int(true[n]))]),
        ]
        for n in ranking(score).tolist()
    )
    header = ["sample", "given", "predicted", "score", "path", *([] if true is None else ["true"])]
    write_table(path, header, rows)
