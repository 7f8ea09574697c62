"""Styles of an image: what changes its statistics and not its label.

They are drawn from (seed, style, row) alone, where `row` is the image's row in its data set: an image keeps
them in every epoch, on any number of workers and processes, and with or without the other styles.

Shape suffixes: C channels, H × W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from tasks.samplers import seed_for

Style = Literal["contrast", "brightness", "colour", "polarity", "blur", "noise"]
Value = float | bool | tuple[float, ...]
"""What a report shows of a style."""

CONTRAST_SPREAD = 0.8
"""Standard deviation of the logarithm of the contrast."""
BRIGHTNESS_SPREAD = 0.5
"""Standard deviation of the shift of all levels."""
_LIGHTEST_PAPER, _DARKEST_INK = 0.45, 0.55
_LARGEST_BLUR = 1.0  # pixels
_LARGEST_NOISE = 0.15
_KERNEL = 7


# --- each style: a value drawn for an image, and what it does to the image (C, H, W)


def draw_contrast(generator: Generator) -> float:
    """Factor e^(0.8 n), n normal."""
    return math.exp(CONTRAST_SPREAD * float(torch.randn((), generator=generator)))


def apply_contrast(image_CHW: Tensor, factor: float) -> Tensor:
    """Distances to the image's mean level, times the factor."""
    mean = image_CHW.mean()
    return (image_CHW - mean) * factor + mean


def draw_brightness(generator: Generator) -> float:
    """Shift 0.5 n, n normal."""
    return BRIGHTNESS_SPREAD * float(torch.randn((), generator=generator))


def apply_brightness(image_CHW: Tensor, shift: float) -> Tensor:
    """All levels, moved by the shift."""
    return image_CHW + shift


def draw_colour(generator: Generator) -> tuple[float, ...]:
    """Red, green and blue of the ink, in [0.55, 1], then of the paper, in [0, 0.45]."""
    red_green_blue = torch.rand(2, 3, generator=generator).tolist()
    ink = (_DARKEST_INK + (1 - _DARKEST_INK) * level for level in red_green_blue[0])
    paper = (_LIGHTEST_PAPER * level for level in red_green_blue[1])
    return (*ink, *paper)


def apply_colour(image_CHW: Tensor, colours: tuple[float, ...]) -> Tensor:
    """From paper, where the image is 0, to ink, where it is 1."""
    ink, paper = torch.tensor(colours).view(2, 3, 1, 1)
    coloured: Tensor = paper + (ink - paper) * image_CHW
    return coloured


def draw_polarity(generator: Generator) -> bool:
    """Whether the image is inverted: one of two is."""
    return bool(torch.rand((), generator=generator) < 0.5)


def apply_polarity(image_CHW: Tensor, inverted: bool) -> Tensor:
    """The negative, or the image as it is."""
    return 1 - image_CHW if inverted else image_CHW


def draw_blur(generator: Generator) -> float:
    """Standard deviation in [0, 1] pixels."""
    return _LARGEST_BLUR * float(torch.rand((), generator=generator))


def apply_blur(image_CHW: Tensor, deviation: float) -> Tensor:
    """The image under a Gaussian of 7 × 7 pixels, mirrored at the edge."""
    if not deviation:
        return image_CHW
    blurred: Tensor = v2.functional.gaussian_blur(image_CHW, [_KERNEL, _KERNEL], [deviation, deviation])
    return blurred


def draw_noise(generator: Generator) -> float:
    """Standard deviation in [0, 0.15]."""
    return _LARGEST_NOISE * float(torch.rand((), generator=generator))


def apply_noise(image_CHW: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Gaussian noise on each level, the image's own: it comes from the generator too."""
    return image_CHW + deviation * torch.randn(image_CHW.shape, generator=generator)


class _Kind(NamedTuple):
    """A style.

    Attributes:
        number: What tells its draws from those of the others; never changed.
        draw: Its value.
        apply: (image, value, generator behind the draw) ↦ image.
    """

    number: int
    draw: Callable[[Generator], Value]
    apply: Callable[..., Tensor]
    uses_generator: bool = False


# In the order in which they are applied: ink and paper first, then the picture that is taken. Noise comes
# before contrast, which would otherwise decide how much can be seen at all.
STYLES: dict[Style, _Kind] = {
    "polarity": _Kind(0, draw_polarity, apply_polarity),
    "colour": _Kind(1, draw_colour, apply_colour),
    "blur": _Kind(2, draw_blur, apply_blur),
    "noise": _Kind(3, draw_noise, apply_noise, uses_generator=True),
    "contrast": _Kind(4, draw_contrast, apply_contrast),
    "brightness": _Kind(5, draw_brightness, apply_brightness),
}


class ImageStyles:
    """The styles of the images of a data set.

    Args:
        names: Styles that the images have; their order does not matter.
        seed: Seed of the draws.
    """

    def __init__(self, names: Sequence[Style], seed: int) -> None:
        self.names: list[Style] = [name for name in STYLES if name in names]
        self.seed = seed

    def of(self, row: int) -> dict[str, Value]:
        """Value of each style of an image, by name."""
        return {name: STYLES[name].draw(self._generator(name, row)) for name in self.names}

    def __call__(self, image_CHW: Tensor, row: int) -> Tensor:
        """The image, of levels in [0, 1], under its styles; the levels may leave [0, 1]."""
        for name in self.names:
            kind, generator = STYLES[name], self._generator(name, row)
            value = kind.draw(generator)
            more = (generator,) if kind.uses_generator else ()
            image_CHW = kind.apply(image_CHW, value, *more)
        return image_CHW

    def _generator(self, name: Style, row: int) -> Generator:
        return Generator().manual_seed(seed_for(self.seed, STYLES[name].number, row))


def check_styles(styles: Sequence[Style] | None, held_back: Sequence[Style] | None) -> None:
    """Refuse styles that are named twice, and held-back ones that no image has.

    Raises:
        ValueError: One of the two.
    """
    for option, names in (("styles", styles or ()), ("held_back", held_back or ())):
        twice = [name for name in STYLES if list(names).count(name) > 1]
        if twice:
            raise ValueError(f"data.{option}: expected each style once, got {', '.join(twice)} twice or more")
    missing = [name for name in held_back or () if name not in (styles or ())]
    if missing:
        raise ValueError(
            f"data.held_back: expected some of data.styles ({', '.join(styles or ()) or 'none'}), "
            f"got {', '.join(missing)}"
        )
