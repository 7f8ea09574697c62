"""Joint augmentation of an image and its mask: tv_tensors of torchvision, bytes all the way.

Masks are resized by nearest neighbours, always. The steps and their ranges are those of mmsegmentation's
Cityscapes and ADE20K configurations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.segmentation.labels import IGNORE

_RETRIES = 10


class RandomFit(v2.Transform):  # type: ignore[misc]
    """Resize to fit into a random multiple of a frame, keeping the ratio of the sides.

    Args:
        scale: Longer and shorter side of the frame.
        factors: Smallest and largest multiple.
    """

    def __init__(self, scale: tuple[int, int], factors: tuple[float, float]) -> None:
        super().__init__()
        self.scale, self.factors = scale, factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size of one sample."""
        low, high = self.factors
        factor = low + (high - low) * torch.rand(()).item()
        sides = flat_inputs[0].shape[-2:]
        ratio = min(factor * max(self.scale) / max(sides), factor * min(self.scale) / min(sides))
        return {"size": [max(round(ratio * side), 1) for side in sides]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize; torchvision takes nearest neighbours for masks."""
        return F.resize(inpt, params["size"], antialias=True)


class RandomVariedCrop(v2.Transform):  # type: ignore[misc]
    """Crop a box in which no class has more than a share of the labelled pixels, if ten draws find one.

    Args:
        size: Height and width of the box; smaller samples stay as they are.
        share: That share; 1 takes the first box.
    """

    def __init__(self, size: tuple[int, int], share: float) -> None:
        super().__init__()
        self.size, self.share = size, share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the box of one sample."""
        mask = next(item for item in flat_inputs if isinstance(item, tv_tensors.Mask))
        box = self._draw(mask)
        if self.share < 1:
            for _ in range(_RETRIES):
                if self._is_varied(F.crop(mask, **box)):
                    break
                box = self._draw(mask)
        return box

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the box out."""
        return F.crop(inpt, **params)

    def _draw(self, mask: Tensor) -> dict[str, int]:
        margins = [max(have - want, 0) for have, want in zip(mask.shape, self.size, strict=True)]
        top, left = (int(torch.randint(margin + 1, ())) for margin in margins)
        height, width = (min(have, want) for have, want in zip(mask.shape, self.size, strict=True))
        return {"top": top, "left": left, "height": height, "width": width}

    def _is_varied(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.flatten(), minlength=IGNORE + 1)[:IGNORE]
        return int(counts.count_nonzero()) > 1 and bool(counts.max() / counts.sum() < self.share)


class PadTo(v2.Transform):  # type: ignore[misc]
    """Pad at the right and the bottom: images with a colour, masks with IGNORE.

    Args:
        size: Height and width to pad to; larger samples stay as they are.
        colour: Colour of the padding, in [0, 1].
    """

    def __init__(self, size: tuple[int, int], colour: tuple[float, float, float]) -> None:
        super().__init__()
        self.size, self.colour = size, [float(round(255 * level)) for level in colour]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad one of the two."""
        bottom, right = (max(want - have, 0) for have, want in zip(inpt.shape[-2:], self.size, strict=True))
        fill: Any = float(IGNORE) if isinstance(inpt, tv_tensors.Mask) else self.colour
        return F.pad(inpt, [0, 0, right, bottom], fill=fill)


class PhotometricDistortion(v2.Transform):  # type: ignore[misc]
    """Shift brightness by up to 32, scale contrast and saturation by 0.5–1.5, turn hue by up to 36°.

    Each with probability ½, the contrast before or after the colours. In mmsegmentation the saturation is
    that of HSV; here, as torchvision has it, it is the distance from grey.
    """

    brightness, factor, hue = 32, 0.5, 0.1

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the steps of one image, in order."""
        is_used = (torch.rand(5) < 0.5).tolist()
        draws = (2 * torch.rand(4) - 1).tolist()
        contrast = [(F.adjust_brightness, 1 + self.factor * draws[1])] if is_used[1] else []
        steps: list[tuple[Any, float]] = [(_shift, self.brightness * draws[0])] if is_used[0] else []
        steps += contrast if is_used[4] else []
        steps += [(F.adjust_saturation, 1 + self.factor * draws[2])] if is_used[2] else []
        steps += [(F.adjust_hue, self.hue * draws[3])] if is_used[3] else []
        return {"steps": steps + ([] if is_used[4] else contrast)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply them to the image; the mask stays."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        for step, amount in params["steps"]:
            inpt = step(inpt, amount)
        return inpt


def _shift(image: Tensor, amount: float) -> Tensor:
    return (image.to(torch.int16) + round(amount)).clamp_(0, 255).to(torch.uint8)


class Joint:
    """Apply steps to an image (3, H, W) and its mask (H, W) at once.

    Args:
        *steps: Transforms of torchvision, or of this module.
    """

    def __init__(self, *steps: v2.Transform) -> None:
        self.transform = v2.Compose(steps)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Plain tensors again: batches of torchvision's subclasses are slower."""
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor).contiguous(), mask.as_subclass(Tensor).contiguous()


def training_steps(
    scale: tuple[int, int],
    factors: tuple[float, float],
    crop: tuple[int, int],
    share: float,
    distortion: bool,
    colour: tuple[float, float, float],
) -> list[v2.Transform]:
    """Scale, crop, flip, distort the colours, pad; for the arguments see the classes."""
    return [
        RandomFit(scale, factors),
        RandomVariedCrop(crop, share),
        v2.RandomHorizontalFlip(),
        *([PhotometricDistortion()] if distortion else []),
        PadTo(crop, colour),
    ]
