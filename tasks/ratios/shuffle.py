"""What the choice of λ per sample is worth: the task's score without it.

Legend: N samples of a pass, S of the split, K normalizers, P = Σ K over layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from exemplar_norm import replace_ratios
from tasks.errors import UserError
from tasks.ratios.inputs import Batch, batches
from tasks.ratios.layers import GateRows, exemplar_layers, full_names
from tasks.ratios.load import Trained
from tasks.ratios.scores import MeanIoU, Score, TopOne
from tasks.ratios.survey import LayerRatios
from tasks.ratios.worth import MEAN, OWN, SHUFFLED, UNIFORM, Way, Worth

_SEED = 0


def measure_worth(
    trained: Trained,
    split: str,
    loader: DataLoader[Any],
    device: torch.device,
    layers: list[LayerRatios],
    vectors: NDArray[np.float32],
) -> Worth:
    """Score a network with its own λ, and with others in their place, on the samples of a split.

    "shuffled" gives every sample the λ of another sample of the split, the same one's in all layers, along
    one random cycle through all samples; "mean" gives all samples each layer's mean λ, "uniform" 1/K.

    Args:
        trained: The network and its data, which is set up.
        split: Name of the split.
        loader: Its samples.
        device: Where the network is.
        layers: The layers that run, with their means.
        vectors: (S, P) λ of the samples in the loader's order, from one pass of the network over each.

    Raises:
        UserError: There is one sample alone, whose λ cannot be shuffled.
    """
    S = len(vectors)
    if S < 2:
        raise UserError(f"--split: expected two samples or more to shuffle λ between, got {S} in {split}")
    passes = _Passes(trained, layers, device)
    if passes.inference is not None:  # windows and scales have their own λ
        vectors = passes.record(loader)
    cycle = np.random.default_rng(_SEED).permutation(S)
    source = np.empty_like(cycle)
    source[cycle] = np.roll(cycle, 1)
    given = torch.from_numpy(vectors[source]).to(device)
    score: Score = TopOne() if passes.inference is None else MeanIoU(trained.data)
    kept: dict[str, int] = dict.fromkeys((SHUFFLED, MEAN, UNIFORM), 0)
    predictions = 0
    for first, inputs, targets in passes.units(loader):
        own = passes.predict(inputs)
        predictions += own.numel()
        _count(score, OWN, own, targets, first)
        for way in kept:
            with passes.replaced(way, given[first : first + len(inputs)]):
                other = passes.predict(inputs)
            kept[way] += int((other == own).sum())
            _count(score, way, other, targets, first)
    ways = {way: Way(score.value(way), score.error(OWN, way), kept[way] / predictions) for way in kept}
    return Worth(split, S, score.name, score.value(OWN), ways)


def _count(score: Score, way: str, predicted: Tensor, targets: Any, first: int) -> None:
    if targets is not None:
        score.add(way, predicted, targets, first)


class _Passes:
    """Sending samples through a network as its task evaluates them.

    Args:
        trained: The network and its data.
        layers: The layers that run, with their means.
        device: Where the network is.
    """

    def __init__(self, trained: Trained, layers: list[LayerRatios], device: torch.device) -> None:
        self.model: Any = trained.model
        self.data, self.device = trained.data, device
        self.inference: Any = getattr(trained.model, "inference", None)  # of segmentation
        names = full_names(trained.model)
        self.sizes = {names[layer.layer]: len(layer.normalizers) for layer in layers}
        self.means = {names[layer.layer]: torch.from_numpy(layer.mean) for layer in layers}
        self._short = [layer.layer for layer in layers]

    def units(self, loader: DataLoader[Any]) -> Iterator[tuple[int, Tensor, Any]]:
        """Samples that go through the network together: place of the first, inputs (N, …), their targets."""
        first = 0
        for batch in batches(self.data, loader, self.device):
            for inputs, targets in self._parts(batch):
                yield first, inputs, targets
                first += len(inputs)

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Any]]:
        if self.inference is not None:  # image by image: each has its own number of windows
            images = [image for inputs in batch.inputs for image in inputs]
            yield from ((image[None], [mask]) for image, mask in zip(images, batch.targets, strict=True))
            return
        place = 0
        for inputs in batch.inputs:
            labels = None if batch.labels is None else batch.labels[place : place + len(inputs)]
            place += len(inputs)
            yield inputs, labels

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Tensor:
        """Most probable class of each image (N) or pixel (N, H, W)."""
        if self.inference is None:
            predicted: Tensor = self.model(inputs).argmax(1)
            return predicted
        return torch.stack([logits.argmax(0) for logits in self.inference(self.model.network, [*inputs])])

    def record(self, loader: DataLoader[Any]) -> NDArray[np.float32]:
        """λ (S, P) of each sample, the mean over the windows and views that it is evaluated by."""
        layers = exemplar_layers(self.model)
        gates, found = GateRows({name: layers[name] for name in self._short}), []
        gates.attach()
        try:
            for _, inputs, _ in self.units(loader):
                self.predict(inputs)
                rows = gates.take()
                means = [
                    rows[name].view(-1, len(inputs), rows[name].shape[1]).mean(0) for name in self._short
                ]
                found.append(torch.cat(means, 1).float().cpu().numpy())
        finally:
            gates.detach()
        return np.concatenate(found)

    def replaced(self, way: str, rows_NP: Tensor) -> ExitStack:
        """A block in which λ is the mean over samples, 1/K or, "shuffled", the rows given."""
        how: Any = "uniform"
        if way == MEAN:
            how = self.means
        elif way == SHUFFLED:
            # One sample's ratios hold for as many windows as it has.
            rows = rows_NP[0] if len(rows_NP) == 1 else rows_NP
            how = dict(zip(self.sizes, torch.split(rows, [*self.sizes.values()], -1), strict=True))
        stack = ExitStack()
        stack.enter_context(replace_ratios(self.model, how))
        return stack
