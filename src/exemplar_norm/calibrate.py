"""Batch-average statistics: running averages taken anew, each batch with the same weight."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm.base import check_positive
from exemplar_norm.normalizers import RunningStatistics


def calibrate(model: nn.Module, batches: Iterable[Any], limit: int | None = None) -> nn.Module:
    """Replace running statistics by their plain average over `batches`, and freeze nothing else.

    The alternative to moving averages that the SN papers use at test time. Layers that keep running
    statistics (the family's with "bn", and PyTorch's BatchNorm) run in training mode, each normalizing by its
    batch while the cumulative average is taken; everything else, dropout too, runs in
    evaluation mode. Parameters, training flags and momenta are as before afterwards.

    Args:
        model: any network.
        batches: inputs, or tuples whose first entry is the input, as a DataLoader yields them.
        limit: how many batches to use at most; None for all.

    Returns:
        `model`.

    Raises:
        ValueError: there is no batch, no layer to calibrate, `limit` is not a positive whole number, or a
            batch is none of these. The statistics are then as before.
    """
    if limit is not None:
        limit = check_positive("limit", limit)
    layers = [m for m in model.modules() if _keeps_statistics(m)]
    if not layers:
        raise ValueError("calibrate: expected a model with layers that keep running statistics, found none")
    try:
        iterator = islice(iter(batches), limit)
    except TypeError as error:
        raise ValueError(f"batches: expected an iterable of inputs, got {batches!r}") from error
    first = list(islice(iterator, 1))
    if not first:
        raise ValueError("calibrate: expected at least one batch, got none")
    flags = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    saved = [[b.clone() for b in _statistics(layer)] for layer in layers]
    try:
        _average(model, layers, chain(first, iterator))
    except BaseException:
        for layer, buffers in zip(layers, saved, strict=True):
            for buffer, before in zip(_statistics(layer), buffers, strict=True):
                buffer.copy_(before)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in flags.items():
            module.training = training
    return model


def _keeps_statistics(module: nn.Module) -> bool:
    kinds = (RunningStatistics, nn.modules.batchnorm._BatchNorm)
    return isinstance(module, kinds) and getattr(module, "running_mean", None) is not None


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    return layer.running_mean, layer.running_var, layer.num_batches_tracked  # type: ignore[return-value]


@torch.no_grad()
def _average(model: nn.Module, layers: list[nn.Module], batches: Iterable[Any]) -> None:
    model.eval()
    for layer in layers:
        mean, var, count = _statistics(layer)
        mean.zero_()
        var.fill_(1)
        count.zero_()
        layer.momentum = None  # type: ignore[assignment]
        layer.training = True  # not its gate, whose averages are none of these
    device = _statistics(layers[0])[0].device
    for batch in batches:
        model(_input(batch).to(device))


def _input(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor):
        inside = "" if x is batch else f" that starts with a {type(x).__name__}"
        raise ValueError(
            "batches: expected tensors, or tuples whose first entry is the input tensor, "
            f"got a {type(batch).__name__}{inside}"
        )
    return x
