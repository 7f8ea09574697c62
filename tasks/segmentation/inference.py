"""From a network to the class probabilities of whole images: sliding windows, several scales, mirrored.

Results depend on an image alone, not on the batch that it came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) ↦ logits (N, C, H, W)."""

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of published multi-scale scores."""


@dataclass(frozen=True)
class Inference:
    """How images are evaluated.

    Args:
        mode: "whole" images at once, or by a window that "slide"s over them.
        crop_size: Height and width of the window.
        stride: Steps of the window, downwards and to the right.
        frame: Longer and shorter side of a frame that images are resized to fit into; the logits come back
            in the image's size. None takes images as they are.
        scales: Multiples of that size at which an image is evaluated; the class probabilities are averaged.
        flip: Whether each is evaluated mirrored as well.
        window_batch: Windows that go through the network at once.
        accumulate_on_cpu: Whether the sums over windows and scales are kept off the accelerator, whose
            memory 150 classes of a large image would fill.
    """

    mode: Literal["whole", "slide"] = "whole"
    crop_size: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    frame: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window_batch: int = 4
    accumulate_on_cpu: bool = False

    def __post_init__(self) -> None:
        sizes = {"crop_size": self.crop_size, "stride": self.stride, "frame": self.frame or (1, 1)}
        for name, values in sizes.items():
            if min(values) < 1:
                raise ValueError(f"model.inference.{name}: expected positive numbers, got {list(values)}")
        if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
            raise ValueError(
                f"model.inference.stride: expected steps within the window {list(self.crop_size)}, got "
                f"{list(self.stride)}"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"model.inference.scales: expected positive numbers, got {list(self.scales)}")
        if self.window_batch < 1:
            raise ValueError(
                f"model.inference.window_batch: expected a positive number, got {self.window_batch}"
            )

    def __call__(self, network: Network, images: Sequence[Tensor]) -> Iterator[Tensor]:
        """Logits (C, H, W) of each image (3, H, W), whose softmax are the class probabilities.

        Whole images of one size go through the network together, else the windows of one image: the memory
        of windows does not grow with the batch. Of several views, the logarithms of the
        averaged probabilities come out.
        """
        start = 0
        for stop in range(1, len(images) + 1):
            is_last = stop == len(images) or self.mode == "slide"
            if is_last or images[stop].shape != images[start].shape:
                yield from self.logits(network, torch.stack([*images[start:stop]]))
                start = stop

    def logits(self, network: Network, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) of images (N, 3, H, W) of one size."""
        views = [*product(self.scales, (False, True) if self.flip else (False,))]
        if len(views) == 1:
            return self._view(network, images, *views[0])
        total: Tensor | None = None
        for scale, is_flipped in views:
            probability = self._view(network, images, scale, is_flipped).float().softmax(dim=1)
            total = probability if total is None else total.add_(probability)
        if total is None:
            raise ValueError("model.inference.scales: expected at least one, got none")
        # The smallest normal number: log 0 would make infinite losses of rounded probabilities.
        return total.div_(len(views)).clamp_(min=torch.finfo(total.dtype).tiny).log_()

    def _view(self, network: Network, images: Tensor, scale: float, is_flipped: bool) -> Tensor:
        size = images.shape[-2:]
        seen = images.flip(-1) if is_flipped else images
        if self.frame:
            scale *= min(max(self.frame) / max(size), min(self.frame) / min(size))
        if scale != 1:
            scaled = [max(round(scale * side), 1) for side in size]
            seen = F.interpolate(seen, scaled, mode="bilinear", antialias=scale < 1)
        logits = self._slide(network, seen) if self.mode == "slide" else self._kept(network(seen))
        if scale != 1:
            logits = F.interpolate(logits, size, mode="bilinear")
        return logits.flip(-1) if is_flipped else logits

    def _slide(self, network: Network, images: Tensor) -> Tensor:
        """Logits summed over the windows, divided by the number of windows over a pixel."""
        return torch.stack([self._slide_one(network, image) for image in images])

    def _slide_one(self, network: Network, image: Tensor) -> Tensor:
        places = windows(image.shape[-2:], self.crop_size, self.stride)
        height, width = (min(a, b) for a, b in zip(image.shape[-2:], self.crop_size, strict=True))
        boxes = [(slice(top, top + height), slice(left, left + width)) for top, left in places]
        total: Tensor | None = None
        count = torch.zeros(image.shape[-2:])
        for start in range(0, len(boxes), self.window_batch):
            chunk = boxes[start : start + self.window_batch]
            logits = self._kept(network(torch.stack([image[:, rows, columns] for rows, columns in chunk])))
            if total is None:
                total = logits.new_zeros(logits.shape[1], *image.shape[-2:], dtype=torch.float32)
            for (rows, columns), one in zip(chunk, logits, strict=True):
                total[:, rows, columns] += one
                count[rows, columns] += 1
        if total is None:
            raise ValueError("image: expected at least one pixel, got none")
        return total.div_(count.to(total.device))

    def _kept(self, logits: Tensor) -> Tensor:
        return logits.cpu() if self.accumulate_on_cpu else logits


def windows(size: Sequence[int], crop: Sequence[int], stride: Sequence[int]) -> list[tuple[int, int]]:
    """Top left corners of windows that cover an image, the last ones shifted back into it.

    max(size − crop + stride − 1, 0) // stride + 1 of them each way, as in mmsegmentation.
    """
    rows, columns = (_starts(*one) for one in zip(size, crop, stride, strict=True))
    return [*product(rows, columns)]


def _starts(size: int, crop: int, stride: int) -> list[int]:
    number = max(size - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride, size - crop), 0) for index in range(number)]
