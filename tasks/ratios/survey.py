"""What the layers of a network choose: the mixture of each, over many samples.

Legend: L layers, N samples, K normalizers, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.switch import SparseSwitchNorm
from tasks.ratios.layers import switch_layers
from tasks.ratios.statistics import RatioStatistics, Sums

Array = NDArray[np.float64]
STATIC = 0.01
"""Standard deviation of λ over samples below which a layer is said to have one λ for all of them."""


@dataclass(frozen=True)
class LayerRatios:
    """The mixture of one layer.

    Attributes:
        layer: Its name.
        kind: "en", "sn" or "ssn".
        mixture: What is mixed: "both" statistics in one ratio (EN), the "mean" or the "variance" (SN, SSN).
        normalizers: The K normalizers.
        samples: Samples that were seen; 0 for a mixture that all samples share.
        mean: (K) mean of λ over samples.
        std: (K) standard deviation of λ over samples.
        largest: (K) share of the samples in which a normalizer has the largest ratio.
        entropy: Mean entropy of a sample's λ, of its largest value ln K: 1 is an even mixture, 0 one alone.
        spread: Σ_k var λ_k / Σ_k mean_k (1 − mean_k): 0 where all samples share one λ, 1 where each takes one
            normalizer alone.
        between: Share of the variance of λ that lies between the means of the classes; NaN without classes or
            without variance.
        class_mean: (C, K) mean of λ by class, NaN for a class without samples; None without classes.
        class_samples: (C) samples by class.
    """

    layer: str
    kind: str
    mixture: str
    normalizers: tuple[str, ...]
    samples: int
    mean: Array
    std: Array
    largest: Array
    entropy: float
    spread: float
    between: float = float("nan")
    class_mean: Array | None = None
    class_samples: Array | None = None


class RatioSurvey:
    """Statistics of λ over many samples for every exemplar layer of a network.

    Args:
        layers: The layers, by name.
        num_classes: C; 0 without classes.
        device: Where λ comes from.
    """

    def __init__(
        self, layers: Mapping[str, ExemplarNorm], num_classes: int, device: torch.device | str = "cpu"
    ) -> None:
        names: dict[tuple[str, ...], list[str]] = {}
        for name, layer in layers.items():
            names.setdefault(tuple(layer.normalizers), []).append(name)
        self.order, self.names, self.num_classes = list(layers), names, num_classes
        self.statistics = {
            normalizers: RatioStatistics(len(group), len(normalizers), num_classes).to(device)
            for normalizers, group in names.items()
        }

    def reset(self) -> None:
        """Forget what was seen."""
        for statistics in self.statistics.values():
            statistics.reset()

    def update(self, rows: Mapping[str, Tensor], labels: Tensor | None = None) -> None:
        """Take in λ (N, K) by layer; `labels` of the samples, which several passes repeat."""
        for normalizers, names in self.names.items():
            by_count: dict[int, list[int]] = {}
            for place, name in enumerate(names):
                if name in rows and len(rows[name]):
                    by_count.setdefault(len(rows[name]), []).append(place)
            for count, places in by_count.items():  # nearly always one: all layers at once
                ratio = torch.stack([rows[names[place]] for place in places])
                known = _repeated(labels, count) if labels is not None and self.num_classes else None
                self.statistics[normalizers].update(torch.tensor(places, device=ratio.device), ratio, known)

    def finish(self) -> list[LayerRatios]:
        """The mixture of each layer that has run, in all processes; all of them call it."""
        found: dict[str, LayerRatios] = {}
        for normalizers, names in self.names.items():
            sums = self.statistics[normalizers].compute()
            for layer in _summaries(names, normalizers, sums):
                found[layer.layer] = layer
        return [found[name] for name in self.order if name in found]


def _repeated(labels: Tensor, count: int) -> Tensor | None:
    """Labels of `count` rows that come from whole passes over a batch; None where they do not."""
    passes, rest = divmod(count, max(len(labels), 1))
    return None if rest or not passes else labels.repeat(passes)


def _summaries(names: list[str], normalizers: tuple[str, ...], sums: Sums) -> Iterable[LayerRatios]:
    L, K = len(names), len(normalizers)
    # torchmetrics drops the axes of a state with a single element.
    count, entropy = (part.reshape(L).cpu().numpy() for part in (sums.samples, sums.entropy))
    mean, deviation, largest = (
        part.reshape(L, K).cpu().numpy() for part in (sums.mean, sums.deviation, sums.largest)
    )
    class_count = sums.class_samples.reshape(-1, L).cpu().numpy()
    class_sum = sums.class_sum.reshape(-1, L, K).cpu().numpy()
    for place in np.flatnonzero(count):
        n = count[place]
        known, of_class = class_count[:-1, place], class_sum[:-1, place]
        has_classes = bool(len(known)) and known.sum() == n
        class_mean = np.where(known[:, None] > 0, of_class / np.maximum(known, 1)[:, None], np.nan)
        between = (known[:, None] * np.nan_to_num(class_mean - mean[place]) ** 2).sum()
        total = deviation[place].sum()
        yield LayerRatios(
            layer=names[place],
            kind="en",
            mixture="both",
            normalizers=normalizers,
            samples=int(n),
            mean=mean[place],
            std=np.sqrt(deviation[place] / n),
            largest=largest[place] / n,
            entropy=float(entropy[place] / n / np.log(K)) if K > 1 else 0.0,
            spread=_spread(mean[place], total / n),
            between=float(between / total) if has_classes and total > 0 else float("nan"),
            class_mean=class_mean if has_classes else None,
            class_samples=known if has_classes else None,
        )


def _spread(mean: Array, variance: float) -> float:
    most = float((mean * (1 - mean)).sum())
    # λ of one normalizer alone in every sample: nothing varies, but for what rounding leaves.
    return float(variance / most) if most > 1e-12 else 0.0


def is_static(layers: Sequence[LayerRatios]) -> bool:
    """Whether exemplar layers take one λ for all samples: its deviation is below STATIC in all of them."""
    found = [layer for layer in layers if layer.kind == "en" and layer.samples > 1]
    return bool(found) and all(float(layer.std.max()) < STATIC for layer in found)


def static_in_words(layers: Sequence[LayerRatios]) -> str:
    """What to do about layers with one λ for all samples."""
    largest = max(float(layer.std.max()) for layer in layers)
    return (
        f"λ is the same for all samples in each of {len(layers)} layers (its standard deviation is at most "
        f"{largest:.2g}): the gates choose nothing yet. Train for longer or with a larger model.lr; or take "
        "--model.norm sn, which has one λ for all samples by construction"
    )


def static_ratios(model: nn.Module) -> list[LayerRatios]:
    """The mixtures of SN and SSN layers, which all samples share."""
    found = []
    for name, layer in switch_layers(model).items():
        kind = "ssn" if isinstance(layer, SparseSwitchNorm) else "sn"
        for mixture, weights in zip(("mean", "variance"), layer.mixture(), strict=True):
            mean = weights.detach().double().cpu().numpy()
            is_largest = (mean == mean.max()).astype(np.float64)
            positive = mean[mean > 0]
            entropy = float(-(positive * np.log(positive)).sum() / np.log(len(mean))) if len(mean) > 1 else 0
            found.append(
                LayerRatios(
                    layer=name,
                    kind=kind,
                    mixture=mixture,
                    normalizers=tuple(layer.normalizers),
                    samples=0,
                    mean=mean,
                    std=np.zeros_like(mean),
                    largest=is_largest / max(is_largest.sum(), 1),  # none where λ is no number
                    entropy=entropy,
                    spread=0.0,
                )
            )
    return found
