"""Wrong arguments and inputs: a ValueError that says what was expected and what came."""

import pytest
import torch

from exemplar_norm import (
    NORMS,
    ExemplarNorm1d,
    ExemplarNorm2d,
    ExemplarNorm3d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    backend,
)

FAMILIES = pytest.mark.parametrize("layer", [ExemplarNorm2d, SwitchNorm2d])


def message_of(call, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def assert_names(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@FAMILIES
def test_wrong_channel_count(layer, training):
    message = message_of(layer(64).train(training), torch.randn(2, 48, 3, 3))
    assert_names(message, "64", "48")


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (cls, shape, expected)
        for classes, shape, expected in [
            ((ExemplarNorm1d, SwitchNorm1d), (7, 60, 9, 9), ("2", "3")),
            ((ExemplarNorm2d, SwitchNorm2d), (7, 60), ("4",)),
            ((ExemplarNorm2d, SwitchNorm2d), (7, 60, 9), ("4",)),
            ((ExemplarNorm2d, SwitchNorm2d), (7, 60, 9, 9, 9), ("4",)),
            ((ExemplarNorm3d, SwitchNorm3d), (7, 60, 9, 9), ("5",)),
        ]
        for cls in classes
    ],
    ids=lambda value: getattr(value, "__name__", None) or "x".join(map(str, value)),
)
def test_wrong_rank(layer, shape, expected):
    message = message_of(layer(60, groups=4), torch.randn(shape)).removeprefix(layer.__name__)
    assert_names(message, str(shape))
    assert_names(message.replace(str(shape), ""), *expected)


@FAMILIES
def test_unknown_normalizer_lists_the_choices(layer):
    assert_names(message_of(layer, 64, ("in", "batch")), "batch", "in", "ln", "bn", "gn")


@FAMILIES
def test_a_joined_string_is_no_sequence_of_normalizers(layer):
    assert_names(message_of(layer, 64, "in,ln"), "in,ln", "bn", "gn")


@FAMILIES
def test_duplicate_normalizers(layer):
    assert_names(message_of(layer, 64, ("in", "ln", "in")), "in", "ln")


@FAMILIES
def test_no_normalizers(layer):
    assert_names(message_of(layer, 64, ()), "in", "ln", "bn", "gn")


@FAMILIES
def test_channels_that_groups_do_not_divide(layer):
    assert_names(message_of(layer, 50, ("in", "gn"), groups=4), "50", "4", "groups")
    assert layer(50, ("in", "ln", "bn"), groups=4)(torch.randn(2, 50, 2, 2)).shape == (2, 50, 2, 2)


@pytest.mark.parametrize("groups", [0, -2])
@FAMILIES
def test_groups_below_one(layer, groups):
    assert_names(message_of(layer, 50, ("gn",), groups=groups), "groups", str(groups))


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("option", ["reduction", "hidden"])
def test_options_below_one(option, value):
    assert_names(message_of(ExemplarNorm2d, 64, **{option: value}), option, str(value))


@pytest.mark.parametrize("value", [0, -3])
@FAMILIES
def test_no_features(layer, value):
    assert_names(message_of(layer, value), "num_features", str(value))


def test_unknown_descriptor_lists_the_choices():
    assert_names(message_of(ExemplarNorm2d, 64, descriptor="max"), "max", "mean", "mean_std")


def test_unknown_backend_lists_the_choices():
    def enter():
        with backend("fast"):
            pass

    assert_names(message_of(enter), "fast", "auto", "reference", "eager")


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("en", ("normalizers", "reduction", "hidden", "groups", "descriptor", "eps", "momentum")),
        ("sn", ("normalizers", "groups", "eps", "momentum")),
        ("bn", ("eps", "momentum")),
        ("gn", ("groups", "eps")),
    ],
)
def test_unknown_option_lists_the_valid_ones(key, valid):
    message = message_of(NORMS[key], 64, redution=4)
    assert_names(message.replace("redution", "", 1), *valid)
    assert "redution" in message


def test_an_error_leaves_the_layer_usable():
    layer = ExemplarNorm2d(8)
    before = layer.running_mean.clone()
    message_of(layer, torch.randn(2, 4, 3, 3))
    assert torch.equal(layer.running_mean, before)
    assert layer.num_batches_tracked == 0
    assert layer(torch.randn(2, 8, 3, 3)).isfinite().all()
