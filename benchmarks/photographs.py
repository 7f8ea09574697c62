"""Pictures with the statistics of photographs, for benchmarks and tests that carry none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def photograph(generator: np.random.Generator, width: int = 500, height: int = 375) -> NDArray[np.uint8]:
    """A random picture whose spectrum falls as 1/f, with the edges of objects and the noise of a sensor.

    At 500×375 and JPEG quality 90 it takes 100 to 130 kB, as the average image of ImageNet does.

    Args:
        generator: Source of the randomness.
        width: Columns.
        height: Rows.

    Returns:
        Levels (height, width, 3), red, green and blue.
    """
    surface = np.stack([_one_over_f(generator, height, width) for _ in range(2)])
    for _ in range(12):  # in front of one another, each with its own light
        inside = _object(generator, height, width)
        surface[:, inside] = surface[:, inside][:, ::-1] + generator.normal(0, 1, (2, 1))
    light, colour = surface
    # Photographs are far from grey less often than they are dark or bright: one weak axis of colour.
    axis = generator.normal(0, 0.3, 3)
    levels = 118 + 34 * (light[..., None] + axis * colour[..., None])
    levels += generator.normal(0, 6, levels.shape[:2])[..., None] + generator.normal(0, 2, levels.shape)
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)


def _one_over_f(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Gaussian field (height, width) with amplitudes 1/f, mean 0 and variance 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.normal(size=(height, width))) / frequency
    field = np.asarray(np.fft.irfft2(spectrum, s=(height, width)))
    return np.asarray(field / field.std())


def _object(generator: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels (height, width) inside a random ellipse."""
    y, x = np.ogrid[:height, :width]
    centre_y, centre_x = generator.uniform(0, (height, width))
    radius_y, radius_x = generator.uniform(0.04, 0.35, 2) * (height, width)
    return np.asarray(((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1)
