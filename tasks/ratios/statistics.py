"""Sums of λ over many samples, exact in one pass and on any number of processes.

Legend: L layers, N samples, K normalizers, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Sums(NamedTuple):
    """What `RatioStatistics` has summed up, of all processes; float64."""

    samples: Tensor
    mean: Tensor
    deviation: Tensor
    largest: Tensor
    entropy: Tensor
    class_samples: Tensor
    class_sum: Tensor


class RatioStatistics(Metric):
    """Count, mean and squared deviations of λ for layers with the same normalizers, and sums by class.

    Squared deviations are taken from the mean of a batch and merged (Chan et al. 1983), as a difference of
    sums of squares would lose the small variance of ratios that hardly differ.

    Args:
        layers: L.
        normalizers: K.
        num_classes: C; 0 without classes.
    """

    full_state_update = False
    count: Tensor
    mean: Tensor
    deviation: Tensor
    largest: Tensor
    entropy: Tensor
    class_count: Tensor
    class_sum: Tensor

    def __init__(self, layers: int, normalizers: int, num_classes: int = 0) -> None:
        super().__init__()
        L, K, C = layers, normalizers, num_classes
        self.shape = (L, K)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        for name, state in (("count", zeros(L)), ("mean", zeros(L, K)), ("deviation", zeros(L, K))):
            self.add_state(name, state, dist_reduce_fx=None)  # gathered, and merged in `compute`
        self.add_state("largest", zeros(L, K), dist_reduce_fx="sum")
        self.add_state("entropy", zeros(L), dist_reduce_fx="sum")
        # One class more than there are, for samples of an unknown one.
        self.add_state("class_count", zeros(C + 1, L), dist_reduce_fx="sum")
        self.add_state("class_sum", zeros(C + 1, L, K), dist_reduce_fx="sum")

    def update(self, layers: Tensor, ratio_LNK: Tensor, labels: Tensor | None = None) -> None:
        """Take in λ of some layers, given by their places; `labels` (N), where they are known."""
        ratio = ratio_LNK.double()
        L, N, K = ratio.shape
        mean = ratio.mean(1)
        deviation = (ratio - mean[:, None]).square().sum(1)
        before = (self.count[layers], self.mean[layers], self.deviation[layers])
        merged = _merge(before, (mean.new_full((L,), N), mean, deviation))
        self.count[layers], self.mean[layers], self.deviation[layers] = merged
        is_largest = (ratio == ratio.amax(2, keepdim=True)).double()
        # Equal ratios, as at the first step, share the sample.
        self.largest[layers] += (is_largest / is_largest.sum(2, keepdim=True)).sum(1)
        self.entropy[layers] -= torch.xlogy(ratio, ratio).sum((1, 2))
        unknown = len(self.class_count) - 1
        if labels is None:
            self.class_count[unknown, layers] += N
            return
        places = torch.where((labels >= 0) & (labels < unknown), labels, unknown)
        self.class_count[:, layers] += torch.bincount(places, minlength=unknown + 1).double()[:, None]
        sums = mean.new_zeros(unknown + 1, L, K).index_add_(0, places, ratio.transpose(0, 1))
        self.class_sum[:, layers] += sums

    def compute(self) -> Sums:
        """The sums over all processes."""
        L, K = self.shape
        parts = zip(  # gathered from several processes, the states have an axis in front
            self.count.reshape(-1, L), self.mean.reshape(-1, L, K), self.deviation.reshape(-1, L, K),
            strict=True,
        )  # fmt: skip
        total = next(parts)
        for part in parts:
            total = _merge(total, part)
        return Sums(*total, self.largest, self.entropy, self.class_count, self.class_sum)


Part = tuple[Tensor, Tensor, Tensor]


def _merge(a: Part, b: Part) -> Part:
    """Count (L), mean (L, K) and squared deviations (L, K) of two parts together."""
    (count_a, mean_a, deviation_a), (count_b, mean_b, deviation_b) = a, b
    count = count_a + count_b
    share = (count_b / count.clamp(min=1))[:, None]
    delta = mean_b - mean_a
    deviation = deviation_a + deviation_b + delta.square() * count_a[:, None] * share
    return count, mean_a + delta * share, deviation
