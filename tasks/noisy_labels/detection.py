"""How far a network memorised wrong labels, and how well a score tells them from right ones.

Shapes: N samples, L layers, K normalizers. A label is wrong where the given one is not the true one. A share
of nothing is NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.noisy_labels.noise import Labels

Floats = NDArray[np.floating]
Selection = NDArray[np.bool_]
Distance = Literal["mahalanobis", "euclidean"]


def memorised_share(predicted: Labels, given: Labels, true: Labels) -> float:
    """Share of the wrong labels that the network predicts."""
    return _share(predicted == given, given != true)


def clean_fit(predicted: Labels, given: Labels, true: Labels) -> float:
    """Share of the right labels that the network predicts."""
    return _share(predicted == given, given == true)


def label_precision(selected: Selection, given: Labels, true: Labels) -> float:
    """Share of right labels in a selection, such as Co-teaching's or DivideMix's clean set."""
    return _share(given == true, selected)


def label_recall(selected: Selection, given: Labels, true: Labels) -> float:
    """Share of all right labels that is selected."""
    return _share(selected, given == true)


def noise_auroc(score: Floats, given: Labels, true: Labels) -> float:
    """Probability that a wrong label has a higher score than a right one, ties counted half.

    Args:
        score: (N) higher where a label is thought wrong, such as the loss of each sample.
        given: (N) given labels.
        true: (N) true labels.

    Returns:
        The area under the ROC curve; NaN where no label is wrong or none is right.

    Raises:
        ValueError: A score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(score).all():
        raise ValueError(
            f"score: expected finite numbers, got {np.count_nonzero(~np.isfinite(score))} others"
        )
    wrong = given != true
    return float(roc_auc_score(wrong, score)) if wrong.any() and not wrong.all() else float("nan")


def ratio_distance(ratio_NLK: Floats, given: Labels, distance: Distance = "euclidean") -> NDArray[np.float64]:
    """How far the λ of each sample, over all exemplar layers, lie from the mean of its given class.

    d(n) = ‖W (λ_n − mean of λ over the samples with n's label)‖, W = 1 ("euclidean") or the inverse root of
    the covariance within classes, shrunk as by Ledoit & Wolf (2004) since each λ sums to 1 ("mahalanobis").
    Only given labels enter, so that it can be had without the true ones; but the wrong ones are part of that
    covariance, which hides some of them where λ follows the class.

    Args:
        ratio_NLK: λ of each sample and layer, see `record_ratios`.
        given: (N) given labels.
        distance: See above.

    Returns:
        Distances (N).

    Raises:
        ValueError: The shapes do not fit.
    """
    if ratio_NLK.ndim != 3 or given.shape != ratio_NLK.shape[:1]:
        raise ValueError(
            f"ratios and labels: expected shapes (N, L, K) and (N), got {ratio_NLK.shape} and {given.shape}"
        )
    flat = ratio_NLK.reshape(len(given), -1).astype(np.float64)
    _, members = np.unique(given, return_inverse=True)
    sums = np.zeros((members.max(initial=0) + 1, flat.shape[1]))
    np.add.at(sums, members, flat)
    centred = flat - (sums / np.bincount(members, minlength=len(sums))[:, None])[members]
    # λ that are all alike have no covariance to invert: every distance is 0.
    if distance == "euclidean" or not centred.any():
        return np.asarray(np.linalg.norm(centred, axis=1))
    from sklearn.covariance import LedoitWolf

    squared = LedoitWolf(assume_centered=True).fit(centred).mahalanobis(centred)
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def ratio_auroc(ratio_NLK: Floats, given: Labels, true: Labels, distance: Distance = "euclidean") -> float:
    """`noise_auroc` of `ratio_distance`: whether λ tells wrong labels apart; 0.5 where it does not."""
    return noise_auroc(ratio_distance(ratio_NLK, given, distance), given, true)


def _share(what: Selection, of: Selection) -> float:
    return float(what[of].mean()) if of.any() else float("nan")
