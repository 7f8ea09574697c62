"""`ratios.parquet`: a row for each sample, layer and normalizer.

Legend: S samples, P = Σ K over layers, K normalizers of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exemplar_norm.exemplar import ExemplarNorm
from tasks.data import BaseDataModule

_ROWS = 1 << 18
"""Rows that are held back and written together: a few megabytes, whatever the data set's size."""


class RatioTable:
    """Writes the columns sample, class, layer, normalizer and ratio; the file is there whole or not at all.

    Args:
        path: File to write.
        data: Names samples and classes.
        split: Split of the samples.
        layers: The layers, in the order of their ratios.
    """

    def __init__(
        self, path: Path, data: BaseDataModule, split: str, layers: Mapping[str, ExemplarNorm]
    ) -> None:
        self.path, self.data, self.split = path, data, split
        pairs = [(name, key) for name, layer in layers.items() for key in layer.normalizers]
        self._layer_names = list(layers)
        self._normalizers = sorted({key for _, key in pairs})
        self._layers = np.array([self._layer_names.index(name) for name, _ in pairs], np.int32)
        self._keys = np.array([self._normalizers.index(key) for _, key in pairs], np.int32)
        self._held: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._writer: Any = None

    def __enter__(self) -> RatioTable:
        import pyarrow.parquet as pq

        self._temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._writer = pq.ParquetWriter(self._temporary, self._schema(), compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()
        if kind is None:
            self._temporary.replace(self.path)
        else:
            self._temporary.unlink()

    def write(self, vectors: NDArray[Any], indices: NDArray[Any], labels: NDArray[Any]) -> None:
        """Add samples: λ (S, P), their places in the split (S) and classes (S), below 0 for none."""
        self._held.append((vectors, indices, labels))
        if sum(part.size for part, _, _ in self._held) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        vectors, indices, labels = (np.concatenate(part) for part in zip(*self._held, strict=True))
        self._held = []
        S, P = vectors.shape
        samples = [_text(self.data.sample_name(self.split, int(index))) for index in indices]
        classes = sorted({int(label) for label in labels if label >= 0})
        names = [_text(self.data.class_name(label)) for label in classes]
        place = np.searchsorted(classes, labels) if classes else np.zeros(S, np.int64)
        of_class = pa.array(np.repeat(place, P).astype(np.int32), mask=np.repeat(labels < 0, P))
        columns = [
            _coded(np.repeat(np.arange(S, dtype=np.int32), P), samples),
            pa.DictionaryArray.from_arrays(of_class, pa.array(names, pa.string())),
            _coded(np.tile(self._layers, S), self._layer_names),
            _coded(np.tile(self._keys, S), self._normalizers),
            pa.array(vectors.reshape(-1), pa.float32()),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema()))

    def _schema(self) -> Any:
        import pyarrow as pa

        name = pa.dictionary(pa.int32(), pa.string())
        columns = [(column, name) for column in ("sample", "class", "layer", "normalizer")]
        return pa.schema([*columns, ("ratio", pa.float32())])


def _coded(places: NDArray[np.int32], names: list[str]) -> Any:
    """A column of names, each stored once."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(places), pa.array(names, pa.string()))


def _text(name: str) -> str:
    """A name without the bytes of file names that are no UTF-8."""
    return name.encode("utf-8", "replace").decode()
