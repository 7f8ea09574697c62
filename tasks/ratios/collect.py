"""λ of every sample of a data set.

Legend: S samples, L layers, K normalizers, P = Σ K over layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from exemplar_norm import record_ratios
from tasks.data import BaseDataModule
from tasks.errors import UserError
from tasks.ratios.inputs import batches, loader_of
from tasks.ratios.layers import exemplar_layers, short_name
from tasks.ratios.load import Trained
from tasks.ratios.parquet import RatioTable
from tasks.ratios.shuffle import measure_worth
from tasks.ratios.survey import LayerRatios, RatioSurvey, static_ratios
from tasks.ratios.worth import Worth


@dataclass(frozen=True)
class Collected:
    """What a data set's samples choose.

    Attributes:
        trained: The network.
        split: The split.
        layers: Statistics of each layer.
        vectors: (S, P) λ of each sample, layers one after the other, float32.
        indices: (S) the samples' places in the split.
        labels: (S) their classes; None without.
        worth: What the choice per sample is worth; None for networks whose samples share their mixtures.
    """

    trained: Trained
    split: str
    layers: list[LayerRatios]
    vectors: NDArray[np.float32]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    worth: Worth | None

    @property
    def exemplar(self) -> list[LayerRatios]:
        """The layers whose λ is one per sample."""
        return [layer for layer in self.layers if layer.kind == "en"]


def collect(trained: Trained, split: str, limit: int, table: Path) -> Collected:
    """Run a network over a split.

    Args:
        trained: The network and its data.
        split: "val" or "test".
        limit: Most samples, taken evenly from the split; 0 for all.
        table: Parquet file to write, where ratios are one per sample.

    Raises:
        UserError: The network has no layer that mixes normalizers, or its λ are no numbers.
    """
    model, data = trained.model, trained.data
    static = static_ratios(model)
    if not exemplar_layers(model):
        if not static:
            norm = trained.facts["norm"]
            raise UserError(f"--ckpt: expected EN, SN or SSN layers, got norm {norm} in {trained.checkpoint}")
        _check_numbers(trained, {layer.layer: layer.mean for layer in static})
        return Collected(trained, split, static, np.empty((0, 0), np.float32), np.empty(0, int), None, None)
    data.prepare_data()
    data.setup("fit" if split == "val" else "test")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    found, vectors, indices, labels = _survey(trained, loader_of(data, split, limit), device, split, table)
    worth = measure_worth(trained, split, loader_of(data, split, limit), device, found, vectors)
    return Collected(
        trained, split, [*found, *static], vectors, indices, labels if (labels >= 0).any() else None, worth
    )


Survey = tuple[list[LayerRatios], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def _survey(
    trained: Trained, loader: DataLoader[Any], device: torch.device, split: str, table: Path
) -> Survey:
    """Statistics by layer; λ (S, P), index and class (S) of each sample, the class below 0 for none."""
    model, data = trained.model, trained.data
    survey = RatioSurvey(exemplar_layers(model), data.num_classes, device)
    parts: list[tuple[NDArray[Any], ...]] = []
    with ExitStack() as stack:
        writer: RatioTable | None = None
        for rows, labels, indices in _rows(model, data, loader, device):
            survey.update(rows, labels)
            if writer is None:  # layers that evaluation leaves out, as those of auxiliary heads, have no rows
                ran = {name: layer for name, layer in exemplar_layers(model).items() if name in rows}
                writer = stack.enter_context(RatioTable(table, data, split, ran))
            known = torch.full_like(indices, -1) if labels is None else labels
            vectors = torch.cat([rows[name] for name in ran], 1).float()
            parts.append(tuple(part.cpu().numpy() for part in (vectors, indices, known)))
            _check_numbers(trained, {name: rows[name].float().cpu().numpy() for name in ran})
            writer.write(*parts[-1])
    if not parts:
        raise UserError(f"--split: expected samples, got none in {split}")
    return survey.finish(), *(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def _check_numbers(trained: Trained, ratios: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a network that diverged: nothing can be said about λ that are no numbers."""
    lost = next((name for name, ratio in ratios.items() if not np.isfinite(ratio).all()), None)
    if lost:
        raise UserError(
            f"--ckpt: expected a network whose λ are numbers, got others in {lost}, as after a training that "
            f"diverged: {trained.checkpoint}"
        )


def _rows(
    model: nn.Module, data: BaseDataModule, loader: DataLoader[Any], device: torch.device
) -> Iterator[tuple[dict[str, Tensor], Tensor | None, Tensor]]:
    """λ (N, K) of each layer, labels and indices of a batch."""
    for batch in batches(data, loader, device):
        rows: dict[str, list[Tensor]] = {}
        for images in batch.inputs:
            with record_ratios(model) as ratios, torch.inference_mode():
                model(images)
            for name, ratio in ratios.items():
                rows.setdefault(short_name(name), []).append(ratio)
        yield {name: torch.cat(part) for name, part in rows.items()}, batch.labels, batch.indices
