"""Each style against NumPy in float64, and what a style depends on."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from tasks.classification import styles
from tasks.classification.styles import STYLES, ImageStyles, check_styles

EVERY = list(STYLES)


@pytest.fixture
def image():
    return torch.rand(3, 12, 10, generator=torch.Generator().manual_seed(3))


def same(got, expected):
    # A few float32 roundings of values below 10.
    np.testing.assert_allclose(got.double().numpy(), expected, atol=5e-6, rtol=0)


def exact(image):
    return image.double().numpy()


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.5])
def test_contrast(image, factor):
    x = exact(image)
    got = styles.apply_contrast(image, factor)
    same(got, factor * x + (1 - factor) * x.mean())
    assert float(got.mean()) == pytest.approx(x.mean(), abs=1e-6)
    assert float(got.std()) == pytest.approx(factor * x.std(ddof=1), rel=1e-5)


def test_brightness(image):
    same(styles.apply_brightness(image, -0.75), exact(image) - 0.75)


def test_colour(image):
    ink, paper = (0.9, 0.6, 0.7), (0.1, 0.4, 0.0)
    x = exact(image)
    blend = np.stack([x[c] * ink[c] + (1 - x[c]) * paper[c] for c in range(3)])
    same(styles.apply_colour(image, ink + paper), blend)


@pytest.mark.parametrize("inverted", [False, True])
def test_polarity(image, inverted):
    same(styles.apply_polarity(image, inverted), 1 - exact(image) if inverted else exact(image))


@pytest.mark.parametrize("deviation", [0.0, 1e-6, 0.4, 1.0])
def test_blur(image, deviation):
    taps = np.arange(-3, 4)
    kernel = np.exp(-0.5 * (taps / max(deviation, 1e-9)) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(exact(image), ((0, 0), (3, 3), (3, 3)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))
    same(styles.apply_blur(image, deviation), np.einsum("chwij,i,j->chw", windows, kernel, kernel))


def test_noise(image):
    def source():
        return torch.Generator().manual_seed(11)

    field = torch.randn(image.shape, generator=source()).double().numpy()
    same(styles.apply_noise(image, 0.13, source()), exact(image) + 0.13 * field)


def test_all_of_them_one_after_the_other(image):
    """From what `of` says, in the order that is documented: ink and paper first, then the picture."""
    every = ImageStyles(EVERY, seed=4)
    value = every.of(9)
    assert list(value) == ["polarity", "colour", "blur", "noise", "contrast", "brightness"]
    x = styles.apply_polarity(image, value["polarity"])
    x = styles.apply_blur(styles.apply_colour(x, value["colour"]), value["blur"])
    noise = every._generator("noise", 9)
    assert styles.draw_noise(noise) == value["noise"]
    x = exact(styles.apply_noise(x, value["noise"], noise))
    expected = value["contrast"] * (x - x.mean()) + x.mean() + value["brightness"]
    same(every(image, 9), expected)


def test_the_values_have_the_distributions_that_are_told():
    every = ImageStyles(EVERY, seed=1)
    drawn = [every.of(row) for row in range(800)]

    def told(name, *distribution):
        values = [row[name] for row in drawn]
        # One of ten thousand samples is further from its distribution; these draws are always the same.
        return kstest(values, *distribution).pvalue > 1e-4

    contrast = [math.log(row["contrast"]) for row in drawn]
    assert kstest(contrast, "norm", (0, 0.8)).pvalue > 1e-4
    assert told("brightness", "norm", (0, styles.BRIGHTNESS_SPREAD))
    assert told("blur", "uniform", (0, 1.0)) and told("noise", "uniform", (0, 0.15))
    # Four standard deviations of a coin thrown 800 times.
    assert abs(sum(row["polarity"] for row in drawn) - 400) <= 4 * math.sqrt(200)
    colours = np.array([row["colour"] for row in drawn])
    assert all(kstest(colours[:, c], "uniform", (0.55, 0.45)).pvalue > 1e-4 for c in range(3))
    assert all(kstest(colours[:, c], "uniform", (0, 0.45)).pvalue > 1e-4 for c in range(3, 6))
    # No two styles draw the same numbers.
    uniform = [[row["blur"], row["noise"], row["colour"][0]] for row in drawn]
    normal = [[row["contrast"], row["brightness"], row["polarity"]] for row in drawn]
    correlation = np.corrcoef(np.hstack([uniform, normal]).T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / math.sqrt(800)  # as above


def test_an_image_s_styles_depend_on_seed_and_row_alone(image):
    every = ImageStyles(EVERY, seed=5)
    first, value = every(image, 3), every.of(3)
    torch.manual_seed(99)
    _ = every(image, 4), torch.rand(7)
    assert torch.equal(every(image, 3), first) and every.of(3) == value
    assert ImageStyles(EVERY[::-1], seed=5).of(3) == value
    # Without the others, a style is what it was.
    assert all(ImageStyles([name], seed=5).of(3) == {name: value[name]} for name in EVERY)
    for other in (ImageStyles(EVERY, seed=6).of(3), every.of(4)):
        assert all(other[name] != value[name] for name in EVERY if name != "polarity")


def test_they_leave_torch_s_generator_alone(image):
    state = torch.get_rng_state()
    ImageStyles(EVERY, seed=5)(image, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_done_without_styles(image):
    none = ImageStyles([], seed=0)
    assert none.of(1) == {} and torch.equal(none(image, 1), image)


@pytest.mark.parametrize(
    ("names", "held_back", "told"),
    [
        (["blur", "noise", "blur"], [], "data.styles: expected each style once, got blur twice or more"),
        (["blur"], ["blur"] * 2, "data.held_back: expected each style once, got blur twice or more"),
        (["blur", "noise"], ["colour", "blur"], "(blur, noise), got colour"),
        (None, ["colour"], "data.held_back: expected some of data.styles (none), got colour"),
    ],
)
def test_styles_that_make_no_sense_are_refused(names, held_back, told):
    with pytest.raises(ValueError) as caught:
        check_styles(names, held_back)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    check_styles(["blur", "noise"], ["noise"])
