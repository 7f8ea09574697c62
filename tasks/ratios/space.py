"""Samples in the space of their ratios: groups, directions, neighbours, outliers.

Legend: S samples, P ratios of a sample over all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CLUSTERS = 6
_NEIGHBOURS = 5
_QUERIES = 2000
"""Samples whose nearest neighbour is looked up, taken evenly: all pairs of a large data set take long."""


@dataclass(frozen=True)
class RatioSpace:
    """Where samples lie by the λ of all their layers.

    Attributes:
        place: (S, 2) coordinates along the two directions of largest variance.
        share: Shares of the variance that the two directions have.
        cluster: (S) group of each sample, by k-means.
        centres: The sample next to each group's centre.
        neighbours: (groups, neighbours) places of the nearest samples to each of `centres`.
        atypical: Places of all samples, the farthest from the mean first.
        distance: (S) distance from the mean.
        same_class: Share of the samples whose nearest neighbour is of their class, and that share by chance;
            None without classes.
        information: Adjusted mutual information of groups and classes: 0 by chance, 1 if they are the same;
            None without classes.
    """

    place: NDArray[np.float64]
    share: tuple[float, float]
    cluster: NDArray[np.int64]
    centres: list[int]
    neighbours: NDArray[np.int64]
    atypical: NDArray[np.int64]
    distance: NDArray[np.float64]
    same_class: tuple[float, float] | None
    information: float | None


def ratio_space(vectors: NDArray[np.float32], labels: NDArray[np.int64] | None) -> RatioSpace | None:
    """Group and project samples (S, P); the same input gives the same result. None where all are the same."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    # Differences below float32's rounding of λ are none; k-means wants as many distinct points as groups.
    distinct = len(np.unique(np.round(vectors, 6), axis=0))
    if distinct < 3:
        return None
    projection = PCA(2, random_state=0).fit(vectors)
    groups = KMeans(min(_CLUSTERS, distinct), n_init=4, random_state=0).fit(vectors)
    search = NearestNeighbors(n_neighbors=min(_NEIGHBOURS + 1, len(vectors))).fit(vectors)
    # The nearest sample to a centre of k-means stands for its group.
    centres = NearestNeighbors(n_neighbors=1).fit(vectors).kneighbors(groups.cluster_centers_)[1][:, 0]
    nearest = search.kneighbors(vectors[centres])[1]
    distance = np.linalg.norm(vectors - vectors.mean(0), axis=1).astype(np.float64)
    first, second = projection.explained_variance_ratio_.tolist()
    return RatioSpace(
        place=projection.transform(vectors).astype(np.float64),
        share=(first, second),
        cluster=groups.labels_.astype(np.int64),
        centres=centres.tolist(),
        neighbours=_others(centres, nearest),
        atypical=np.argsort(-distance, kind="stable"),
        distance=distance,
        same_class=None if labels is None else _same_class(search, vectors, labels),
        information=None if labels is None else _information(groups.labels_, labels),
    )


def _others(places: NDArray[np.int64], nearest: NDArray[np.int64]) -> NDArray[np.int64]:
    """The nearest samples without the sample itself, which need not come first among equals."""
    rows = [
        [other for other in row if other != place][: len(row) - 1]
        for place, row in zip(places, nearest, strict=True)
    ]
    return np.array(rows, np.int64)


def _same_class(
    search: object, vectors: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[float, float]:
    queries = np.arange(0, len(vectors), -(-len(vectors) // _QUERIES))
    nearest = search.kneighbors(vectors[queries], n_neighbors=2)[1]  # type: ignore[attr-defined]
    other = _others(queries, nearest)[:, 0]
    counts = np.unique(labels, return_counts=True)[1]
    chance = (counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))
    return float((labels[other] == labels[queries]).mean()), float(chance)


def _information(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels, groups))
