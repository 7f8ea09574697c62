"""What a few seeds say: intervals of means, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
LEAST_FOR_FLIPS = 5
"""Pairs below which the sign-flip test cannot reach a small p-value: 2 / 2⁴ = 0.125."""
MOST_FOR_FLIPS = 20
"""Pairs above which not all 2ⁿ choices of signs are gone through."""


@dataclass(frozen=True)
class Mean:
    """A mean and its interval.

    Attributes:
        value: The mean.
        half: Half the width of the 95 % interval by Student's t; None where one value alone says nothing.
        count: Number of values.
    """

    value: float
    half: float | None
    count: int

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval holds zero; None where there is none."""
        return None if self.half is None else abs(self.value) <= self.half


@dataclass(frozen=True)
class Difference:
    """A normalizer minus the first one, seed by seed.

    Attributes:
        mean: Mean of the differences and its interval.
        by_seed: The differences.
        p: Exact two-sided p-value of the sign-flip test; None with too few or too many pairs.
    """

    mean: Mean
    by_seed: dict[int, float]
    p: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean of one or more values with its interval: t(0.975, n − 1) · s / √n to either side."""
    from scipy.stats import sem, t

    count = len(values)
    half = None
    if count > 1:
        half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * sem(values))
    return Mean(sum(values) / count, half, count)


def difference(first: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """The paired difference other − first over the seeds that both have; None where they share none."""
    by_seed = {seed: other[seed] - first[seed] for seed in other if seed in first}
    if not by_seed:
        return None
    values = list(by_seed.values())
    return Difference(mean_of(values), by_seed, sign_flip(values))


def sign_flip(differences: Sequence[float]) -> float | None:
    """Share of the 2ⁿ choices of signs whose mean is at least as far from zero as the one that was seen.

    It holds where the sign of each difference is a coin's toss if the two are alike, and asks for no normal
    distribution. None below LEAST_FOR_FLIPS or above MOST_FOR_FLIPS pairs.
    """
    import numpy as np
    from scipy.stats import permutation_test

    if not LEAST_FOR_FLIPS <= len(differences) <= MOST_FOR_FLIPS:
        return None
    seen = permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        batch=1 << 14,
    )
    return float(seen.pvalue)
