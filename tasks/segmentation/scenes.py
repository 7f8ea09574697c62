"""The embedded scenes: handwritten digits on a textured canvas, a class for every pixel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from tasks.data import Examples
from tasks.normalize import Colour
from tasks.samplers import seed_for
from tasks.segmentation.data import STAGES, SegmentationDataModule
from tasks.segmentation.labels import DIGITS, IGNORE
from tasks.segmentation.transforms import Joint
from tasks.splits import stratified_split

CELL = 24
"""Height and width of a digit's place on the canvas."""

_SHARES = {"train": 0.65, "val": 0.15, "test": 0.2}
_SCENES = {"train": 800, "val": 150, "test": 200}
_FEWEST = 2
# Ink below the first is background, ink above the second is the digit; the edge between them is ignored.
_EDGE = (0.25, 0.5)


class Scenes:
    """Composed (image, mask) pairs: bytes (3, H, W) and train ids (H, W).

    Args:
        pairs: The scenes as composed.
        augment: Joint augmentation; None for the scenes as they are.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], augment: Joint | None) -> None:
        self.pairs, self.augment = pairs, augment

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        return self.augment(*self.pairs[index]) if self.augment else self.pairs[index]


class DigitScenesDataModule(SegmentationDataModule):
    """scikit-learn's handwritten digits, several in a scene; nothing is downloaded.

    11 classes: background and ten digits; the pixels at a digit's edge are ignored. Training, validation and
    test show different digits (65 %, 15 %, 20 % of them). A scene depends on its split and number alone;
    contrast, colours and blur differ from scene to scene, so that the choice of normalizer matters. Training
    scenes are shifted anew in every epoch.

    Args:
        batch_size: Scenes a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order and augmentation; the CLI sets it to `seed_everything`.
        rows: Places for a digit, downwards.
        columns: Places for a digit, to the right.
        scenes: Number of training scenes.
        predict_images: An image or a folder of images to predict in place of the test split.
    """

    mean: ClassVar[Colour] = (0.5, 0.5, 0.5)
    std: ClassVar[Colour] = (0.25, 0.25, 0.25)
    labels = DIGITS

    def __init__(
        self,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
        rows: int = 2,
        columns: int = 2,
        scenes: int = _SCENES["train"],
        predict_images: str | None = None,
    ) -> None:
        super().__init__(predict_images, batch_size=batch_size, num_workers=num_workers, seed=seed)
        for name, value in {"rows": rows, "columns": columns, "scenes": scenes}.items():
            if value < 1:
                raise ValueError(f"data.{name}: expected a positive number, got {value}")
        self.rows, self.columns = rows, columns
        self.counts = {**_SCENES, "train": scenes}
        size = (CELL * rows, CELL * columns)
        self.augment = Joint(v2.RandomCrop(size, padding=4, padding_mode="reflect"))
        self.composed: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def setup(self, stage: str) -> None:
        """Compose the scenes that a stage reads."""
        for split in STAGES[stage]:
            self.examples(split)

    def view(self, split: str) -> Examples:
        """Scenes of one split."""
        if split not in self.composed:
            images, digits = split_digits(split)
            self.composed[split] = [
                compose(
                    np.random.default_rng(seed_for([*_SCENES].index(split), number)),
                    images,
                    digits,
                    self.rows,
                    self.columns,
                )
                for number in range(self.counts[split])
            ]
        return Scenes(self.composed[split], self.augment if split == "train" else None)

    def name_of(self, split: str, index: int) -> str:
        """Number of the scene."""
        return f"scene_{index:04d}"


def split_digits(split: str) -> tuple[Tensor, Tensor]:
    """Ink (N, 8, 8) in [0, 1] and digit (N,) of the examples that a split may show."""
    from sklearn.datasets import load_digits

    table = load_digits()
    rows = stratified_split(table.target, _SHARES)[split]
    return torch.from_numpy(table.images[rows]).float() / 16, torch.from_numpy(table.target[rows])


def compose(
    generator: np.random.Generator, images: Tensor, digits: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Put digits on a canvas: bytes (3, 24·rows, 24·columns), train ids of the same size.

    Half of the places or more (2 at least) have a digit of 20 to 24 pixels, up to 4 off the centre; where two
    overlap, the later one covers the other.

    Args:
        generator: Source of all choices.
        images: Ink (N, 8, 8) of the digits to choose from.
        digits: (N,) which they are.
        rows: Places downwards.
        columns: Places to the right.
    """
    size = (CELL * rows, CELL * columns)
    paper, inks = _colours(generator)
    canvas = paper[:, None, None] + _texture(generator, size)
    mask = torch.zeros(size, dtype=torch.uint8)
    places = rows * columns
    number = int(generator.integers(min(max(_FEWEST, places // 2), places), places + 1))
    for place in generator.permutation(places)[:number].tolist():
        row = int(generator.integers(len(images)))
        ink = _ink(images[row], generator, divmod(place, columns), size)
        colour = inks + torch.from_numpy(generator.uniform(-0.08, 0.08, 3)).float()
        canvas = canvas.lerp(colour[:, None, None].expand_as(canvas), ink)
        mask[ink > _EDGE[0]] = IGNORE
        mask[ink > _EDGE[1]] = int(digits[row]) + 1
    sigma = float(generator.uniform(0.05, 1.0))
    canvas = v2.functional.gaussian_blur(canvas, [5, 5], [sigma, sigma])
    noise = torch.from_numpy(generator.normal(0, 0.02, canvas.shape)).float()
    return (255 * (canvas + noise).clamp(0, 1)).round().to(torch.uint8), mask


def _colours(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Paper and ink (3,), in brightness 0.4 to 0.9 apart, either of them the brighter."""
    contrast = generator.uniform(0.4, 0.9)
    dark = generator.uniform(0.05, 0.95 - contrast)
    pair = np.array([dark, dark + contrast])[:, None] + generator.uniform(-0.08, 0.08, (2, 3))
    paper, ink = torch.from_numpy(pair[:: generator.choice([-1, 1])].copy()).float()
    return paper, ink


def _texture(generator: np.random.Generator, size: tuple[int, int]) -> Tensor:
    """Coloured noise (3, H, W) around 0, coarse and fine."""
    texture = torch.zeros(3, *size)
    for cell, strength in ((16, 0.05), (6, 0.03), (2, 0.02)):
        coarse: NDArray[np.float64] = generator.normal(0, strength, (1, 3, *(-(-s // cell) for s in size)))
        texture += F.interpolate(torch.from_numpy(coarse).float(), size, mode="bicubic")[0]
    return texture


def _ink(
    image: Tensor, generator: np.random.Generator, place: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Ink (H, W) of one digit on the whole canvas."""
    side = int(generator.integers(20, CELL + 1))
    digit = F.interpolate(image[None, None], (side, side), mode="bicubic")[0, 0].clamp(0, 1)
    offsets = generator.integers(-4, 5, 2).tolist()
    top, left = (CELL * p + (CELL - side) // 2 + o for p, o in zip(place, offsets, strict=True))
    ink = torch.zeros(size)
    rows = slice(max(top, 0), min(top + side, size[0]))
    columns = slice(max(left, 0), min(left + side, size[1]))
    ink[rows, columns] = digit[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return ink
