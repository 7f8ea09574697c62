"""What a network does when the ratios of its layers are held constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tasks.data import BaseDataModule
from tasks.ratios.inputs import batches
from tasks.ratios.layers import exemplar_layers
from tasks.ratios.survey import LayerRatios


@dataclass(frozen=True)
class Constant:
    """What holding λ at its mean over samples changes.

    Attributes:
        samples: Samples that were tried.
        same: Share of the predictions (of pixels, in segmentation) that stay as they were.
        right: Share of right predictions as the network is, and with the constant; None without classes.
    """

    samples: int
    same: float
    right: tuple[float, float] | None


@contextmanager
def held_at(model: nn.Module, ratios: Mapping[str, Tensor]) -> Iterator[None]:
    """Hold λ of exemplar layers at the ratios (K) given by layer, for the length of a `with` block."""

    def replace(constant: Tensor, _gate: nn.Module, _inputs: Any, ratio: Tensor) -> Tensor:
        return constant.to(ratio).expand_as(ratio)

    layers = exemplar_layers(model)
    handles = [layers[name].gate.register_forward_hook(partial(replace, r)) for name, r in ratios.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hold_constant(
    model: nn.Module,
    data: BaseDataModule,
    loader: DataLoader[Any],
    device: torch.device,
    layers: Sequence[LayerRatios],
) -> Constant:
    """Predict with λ as it is, and held at its mean in every layer."""
    means = {layer.layer: torch.from_numpy(layer.mean) for layer in layers}
    samples = predictions = same = known = 0
    right = [0, 0]
    for inputs, labels, indices in batches(data, loader, device):
        own = [_predicted(model, images) for images in inputs]
        with held_at(model, means):
            constant = [_predicted(model, images) for images in inputs]
        samples += len(indices)
        predictions += sum(part.numel() for part in own)
        same += sum(int((a == b).sum()) for a, b in zip(own, constant, strict=True))
        if labels is not None:
            known += len(labels)
            for place, part in enumerate((own, constant)):
                right[place] += int((torch.cat(part) == labels).sum())
    shares = (right[0] / known, right[1] / known) if known else None
    return Constant(samples, same / max(predictions, 1), shares)


@torch.inference_mode()
def _predicted(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Most probable class of each image (N) or pixel (N, H, W)."""
    logits: Tensor = model(images)
    return logits.argmax(1)
