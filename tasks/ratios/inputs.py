"""The samples of a split, as they go through a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tasks.data import BaseDataModule
from tasks.ratio_monitor import labels_of
from tasks.samplers import EvaluationSampler


def loader_of(data: BaseDataModule, split: str, limit: int) -> DataLoader[Any]:
    """The split's own loader; with a limit, over every n-th sample of it."""
    loader: DataLoader[Any] = getattr(data, f"{split}_dataloader")()
    size = len(loader.dataset)  # type: ignore[arg-type]
    step = -(-size // limit) if limit else 1
    return DataLoader(
        dataset=loader.dataset,
        batch_size=data.batch_size,
        sampler=EvaluationSampler(size, world_size=step),
        num_workers=data.num_workers,
        collate_fn=loader.collate_fn,
    )


class Batch(NamedTuple):
    """Samples as they go through a network.

    Attributes:
        inputs: Inputs (N, …) that go through the network together, one after the other.
        labels: Class (N) of each sample; None where they have none.
        targets: What the data set says of them: classes, masks.
        indices: (N) their places in the split.
    """

    inputs: list[Tensor]
    labels: Tensor | None
    targets: Any
    indices: Tensor


def batches(data: BaseDataModule, loader: DataLoader[Any], device: torch.device) -> Iterator[Batch]:
    """The batches of a loader on a device."""
    from lightning_fabric.utilities.apply_func import move_data_to_device
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    for batch in track(loader, "reading", console=console, transient=True, disable=not console.is_terminal):
        batch = data.on_after_batch_transfer(move_data_to_device(batch, device), 0)
        images, indices = batch[0], batch[2]
        # Images of their own sizes come as a list: one pass each, whole.
        inputs = [images] if isinstance(images, Tensor) else [image[None] for image in images]
        yield Batch(inputs, labels_of(batch), batch[1], indices)
