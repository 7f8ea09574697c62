"""Fashion-MNIST in small: files in its format."""

import gzip
import struct

import numpy as np


def idx(array):
    """An array of bytes as an idx file's content."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def fashion_files(folder, train=60, test=20, packed=True, seed=0):
    """The four files; (images, labels) of both parts, every class as often as the others."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    parts = {}
    for part, number in (("train", train), ("t10k", test)):
        labels = generator.permutation(np.arange(number) % 10)
        images = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            path = folder / f"{part}-{name}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
        parts[part] = images, labels
    return parts
