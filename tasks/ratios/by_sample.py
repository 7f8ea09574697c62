"""`ratios_by_sample.npz` of a run: λ of some validation samples after the last validation.

Legend: N samples of a batch, S samples kept, K normalizers, P = Σ K over layers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.ranks import gathered
from tasks.whole_file import whole_file

BY_SAMPLE = "ratios_by_sample.npz"
MOST = 2000
"""Samples that are kept at most."""


@dataclass(frozen=True)
class SampleRatios:
    """λ of samples at one time.

    Attributes:
        epoch: The epoch, from 0.
        step: The optimiser step.
        columns: The P pairs of layer and normalizer.
        vectors: (S, P) λ, layers one after the other.
        indices: (S) the samples' places in the validation split, ascending.
        labels: (S) their classes; −1 for none.
    """

    epoch: int
    step: int
    columns: list[tuple[str, str]]
    vectors: NDArray[np.float32]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]


class SampleKeeper:
    """Keeps λ of a bounded, spread-out choice of samples, the same on any number of processes.

    Args:
        columns: Normalizers of each layer that may run, in the layers' order.
        most: Samples kept at most.
    """

    def __init__(self, columns: Mapping[str, tuple[str, ...]], most: int = MOST) -> None:
        self.normalizers, self.most = dict(columns), most
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self._names: list[str] | None = None
        self._parts: list[tuple[Tensor, ...]] = []
        self._is_whole = True

    def add(self, rows: Mapping[str, Tensor], indices: Any, labels: Tensor | None) -> None:
        """Take in λ of a batch by layer; of several passes over it, the first."""
        N = len(indices) if isinstance(indices, Tensor) else 0
        names = [name for name in self.normalizers if name in rows]
        self._names = self._names or names
        if not N or names != self._names or any(len(rows[name]) % N for name in names):
            # Windows of images, or layers that not every batch goes through: no λ of a sample.
            self._is_whole = False
            return
        vectors = torch.cat([rows[name][:N] for name in names], 1).float()
        indices = indices.to(vectors.device)
        known = torch.full_like(indices, -1) if labels is None else labels.to(indices)
        self._parts.append((_order(indices), indices, known, vectors))
        if sum(len(part[0]) for part in self._parts) > 2 * self.most:
            self._parts = [_lowest(self._parts, self.most)]

    def finish(self, epoch: int, step: int) -> SampleRatios | None:
        """What all processes have kept; all of them call it. None where a sample has no λ of its own."""
        own = _lowest(self._parts, self.most) if self._parts and self._is_whole else ()
        parts = gathered([(tuple(part.cpu() for part in own), self._names, self._is_whole)])
        names = next((names for _, names, _ in parts if names), None)
        if names is None or not all(is_whole for _, _, is_whole in parts):
            return None
        _, indices, labels, vectors = _lowest([part for part, _, _ in parts if part], self.most)
        order = torch.argsort(indices)
        return SampleRatios(
            epoch,
            step,
            [(name, key) for name in names for key in self.normalizers[name]],
            vectors[order].numpy(),
            indices[order].numpy(),
            labels[order].numpy(),
        )


def _order(indices: Tensor) -> Tensor:
    """A number for each sample by which few of many are taken, with no period that a data set could share."""
    return indices * 2654435761 % 2**32  # Knuth's multiplicative hash: 2³² over the golden ratio


def _lowest(parts: list[tuple[Tensor, ...]], most: int) -> tuple[Tensor, ...]:
    joined = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    if len(joined[0]) <= most:
        return joined
    chosen = torch.topk(joined[0], most, largest=False).indices
    return tuple(column[chosen] for column in joined)


def write_by_sample(folder: Path, found: SampleRatios) -> None:
    """Write `ratios_by_sample.npz`."""
    buffer = io.BytesIO()
    layers, keys = zip(*found.columns, strict=True)
    np.savez(
        buffer, epoch=found.epoch, step=found.step, layer=np.array(layers), normalizer=np.array(keys),
        ratio=found.vectors, index=found.indices, label=found.labels,
    )  # fmt: skip
    with whole_file(folder / BY_SAMPLE) as file:
        file.buffer.write(buffer.getvalue())


def read_by_sample(folder: Path) -> SampleRatios | None:
    """What `ratios_by_sample.npz` of a run holds; None where there is none."""
    path = folder / BY_SAMPLE
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        columns = [*zip(stored["layer"].tolist(), stored["normalizer"].tolist(), strict=True)]
        return SampleRatios(
            int(stored["epoch"]), int(stored["step"]), columns,
            stored["ratio"], stored["index"], stored["label"],
        )  # fmt: skip


def trim_by_sample(folder: Path, step: int) -> None:
    """Remove the file where it was written at optimiser step `step` or later."""
    found = read_by_sample(folder)
    if found is not None and found.step >= step:
        (folder / BY_SAMPLE).unlink()
