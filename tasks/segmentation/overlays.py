"""Predictions as pictures: colours over the image, and the files that the benchmarks take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tasks.segmentation.labels import IGNORE, Labels

_ROW, _TEXT_WIDTH = 20, 180


def colour_mask(mask: Tensor, labels: Labels) -> Tensor:
    """Colours (3, H, W) of train ids (H, W), black where there is no class."""
    return torch.from_numpy(labels.colours()[mask.cpu().numpy()]).permute(2, 0, 1)


def overlay(image: Tensor, mask: Tensor, labels: Labels, opacity: float = 0.6) -> Tensor:
    """Bytes (3, H, W) of an image under the colours of its classes; ignored pixels stay as they are."""
    image = image.cpu()
    blended = torch.lerp(image.float(), colour_mask(mask, labels).float(), opacity)
    return blended.round_().to(torch.uint8).where(mask.cpu() != IGNORE, image)


def submission(mask: Tensor, labels: Labels) -> Image.Image:
    """Train ids (H, W) as the data set numbers them: raw ids of Cityscapes, 1..150 of ADE20K."""
    return Image.fromarray(labels.files_ids()[mask.cpu().numpy()])


WRITTEN = ("overlays", "submission")
"""The folders of predictions."""


def write_prediction(folder: Path, name: str, image: Tensor, mask: Tensor, labels: Labels) -> None:
    """Write `overlays/<name>.png` and `submission/<name>.png`.

    Args:
        folder: Where the two folders are.
        name: Name of the image; it may have folders before it.
        image: Its bytes (3, H, W).
        mask: Predicted classes (H, W).
        labels: The classes.

    Raises:
        ValueError: If the name leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"name: expected one below {folder}, got {name!r}")
    drawn = to_picture(overlay(image, mask, labels))
    for kind, picture in zip(WRITTEN, (drawn, submission(mask, labels)), strict=True):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def legend(labels: Labels, columns: int = 4) -> Image.Image:
    """A field of its colour and the name of each class, in columns."""
    rows = -(-len(labels) // columns)
    picture = Image.new("RGB", (columns * (_ROW + _TEXT_WIDTH), rows * _ROW), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_ROW * 0.65)
    for index, (name, colour) in enumerate(zip(labels.names, labels.palette, strict=True)):
        left, top = index // rows * (_ROW + _TEXT_WIDTH), index % rows * _ROW
        draw.rectangle((left + 2, top + 2, left + _ROW - 3, top + _ROW - 3), fill=colour, outline="grey")
        draw.text((left + _ROW + 3, top + _ROW // 2), name, "black", font, anchor="lm")
    return picture


def to_picture(pixels: Tensor) -> Image.Image:
    """Bytes (3, H, W) as an image of PIL."""
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().permute(1, 2, 0).numpy()))
