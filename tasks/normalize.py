"""Bytes to the network's input, on the device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Colour = tuple[float, float, float]


def normalize(images: Tensor, mean: Colour, std: Colour) -> Tensor:
    """(x/255 − mean)/std of a batch of bytes (N, 3, H, W), in float32.

    The bytes are scaled and shifted in place, after one conversion.
    """
    scale, shift = _scale_and_shift(mean, std, images.device)
    return images.float().mul_(scale).add_(shift)


@lru_cache
def _scale_and_shift(mean: Colour, std: Colour, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both (3, 1, 1), once a device: a copy to a GPU in each step would make it wait."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(scale, device=device)[:, None, None], torch.tensor(shift, device=device)[
        :, None, None
    ]
