"""Synthetic label noise, as a transition matrix and as draws from it.

Shapes: N samples, C classes. T (C, C): T_jc is the probability that a sample of class j is labelled c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

NoiseKind = Literal["symmetric", "symmetric_inclusive", "pair", "asymmetric"]
Labels = NDArray[np.int64]

CIFAR10_MAP: Mapping[int, int] = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
"""truck → automobile, bird → airplane, cat ↔ dog, deer → horse (Patrini et al., arXiv:1609.03683)."""


def transition_matrix(
    kind: NoiseKind, rate: float, num_classes: int, mapping: Mapping[int, int] | None = None
) -> NDArray[np.float64]:
    """T of a kind of noise.

    Args:
        kind: "symmetric": with probability `rate` the label becomes another class, each equally likely.
            "symmetric_inclusive": with probability `rate` it is drawn from all classes, and is the true one
            again in 1/C of the cases, so that `rate` · (1 − 1/C) of the labels are wrong. "pair": y becomes
            y + 1 modulo C. "asymmetric": y becomes mapping[y]; classes without an entry stay clean.
        rate: In [0, 1].
        num_classes: C, at least 2.
        mapping: The map of "asymmetric"; CIFAR-10's by default, where there are 10 classes.

    Raises:
        ValueError: An argument is outside of its range.
    """
    _check(kind in get_args(NoiseKind), "kind", f"one of {', '.join(get_args(NoiseKind))}", repr(kind))
    _check(0 <= rate <= 1, "rate", "a number in [0, 1]", rate)
    _check(num_classes >= 2, "num_classes", "at least 2", num_classes)
    _check(mapping is None or kind == "asymmetric", "mapping", f"none with {kind!r} noise", mapping)
    same = np.eye(num_classes)
    if kind == "symmetric":
        other = (1 - same) / (num_classes - 1)
    elif kind == "symmetric_inclusive":
        other = np.full_like(same, 1 / num_classes)
    elif kind == "pair":
        other = np.roll(same, 1, axis=1)
    else:
        other = same[_targets(mapping, num_classes)]
    return np.asarray((1 - rate) * same + rate * other)


def corrupt(
    labels: Labels,
    num_classes: int,
    kind: NoiseKind,
    rate: float,
    seed: int,
    mapping: Mapping[int, int] | None = None,
) -> Labels:
    """Noisy labels (N): each drawn from its class's row of `transition_matrix`, independent of the others.

    The draws depend on the arguments alone, on no global generator.

    Args:
        labels: True classes (N).
        num_classes: C.
        kind: See `transition_matrix`, as for `rate` and `mapping`.
        rate: Probability of the noise.
        seed: Seed of the draws, at least 0.
        mapping: The map of "asymmetric".

    Raises:
        ValueError: An argument is outside of its range.
    """
    labels = np.asarray(labels)
    _check(labels.ndim == 1 and labels.dtype.kind in "iu", "labels", "integers (N)", _brief(labels))
    if len(labels):
        low, high = labels.min(), labels.max()
        _check(0 <= low and high < num_classes, "labels", f"0 to {num_classes - 1}", f"{low} to {high}")
    _check(seed >= 0, "seed", "a number ≥ 0", seed)
    rows = transition_matrix(kind, rate, num_classes, mapping)
    generator, noisy = np.random.default_rng(seed), labels.astype(np.int64)
    for label in range(num_classes):
        places = np.flatnonzero(labels == label)
        noisy[places] = generator.choice(num_classes, size=len(places), p=rows[label])
    return noisy


def _targets(mapping: Mapping[int, int] | None, num_classes: int) -> Labels:
    if mapping is None:
        _check(num_classes == 10, "mapping", "a map of classes (its default has 10)", "none")
        mapping = CIFAR10_MAP
    targets = np.arange(num_classes)
    for source, target in mapping.items():
        inside = 0 <= source < num_classes and 0 <= target < num_classes
        _check(inside, "mapping", f"classes from 0 to {num_classes - 1}", f"{source} → {target}")
        targets[source] = target
    return targets


def _check(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _brief(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} of shape {array.shape}"
