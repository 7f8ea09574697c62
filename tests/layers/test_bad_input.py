"""Wrong arguments and inputs: a ValueError that says what was expected and what came."""

import numpy as np
import pytest
import torch

from exemplar_norm import (
    NORMS,
    ConditionalNorm2d,
    ExemplarNorm1d,
    ExemplarNorm2d,
    ExemplarNorm3d,
    SparseSwitchNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    backend,
)
from exemplar_norm.batch import BatchNorm

LAYERS = pytest.mark.parametrize(
    "layer", [ExemplarNorm2d, SwitchNorm2d, SparseSwitchNorm2d, ConditionalNorm2d, BatchNorm]
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


@pytest.mark.parametrize("value", ["in,ln", "in", None, 5, pytest.param({"in", "ln"}, id="set")], ids=str)
@FAMILIES
def test_what_is_no_sequence_of_normalizers(layer, value):
    """A string of one name too, which is a sequence of letters; and a set, which has no order."""
    message = message_of(layer, 64, value)
    assert_names(message, "normalizers: expected a list or tuple", "in, ln, bn, gn", f"got {value!r}")


@pytest.mark.parametrize("value", ["a", None, float("nan"), float("inf"), -1e-5, True, [1e-5]], ids=str)
@LAYERS
def test_eps_that_is_no_finite_number(layer, value):
    assert_names(
        message_of(layer, 8, eps=value), "eps: expected a number that is not negative", f"got {value!r}"
    )


@pytest.mark.parametrize("value", ["x", float("nan"), 1.5, -0.1, True, [0.1]], ids=str)
@LAYERS
def test_momentum_that_is_no_number_from_0_to_1(layer, value):
    assert_names(message_of(layer, 8, momentum=value), "momentum: expected a number in", f"got {value!r}")


@pytest.mark.parametrize("value", [True, np.bool_(True), 8.0, "8", None, [8]], ids=repr)
@LAYERS
def test_features_that_are_no_whole_number(layer, value):
    assert_names(message_of(layer, value), "num_features: expected a positive whole number", repr(value))


@LAYERS
def test_numbers_of_numpy_are_numbers(layer):
    """As plain numbers: a checkpoint of the module, or its repr, should not depend on numpy."""
    made = layer(np.int64(8), eps=np.float32(0.5), momentum=np.float64(0.25))
    assert [type(v) for v in (made.num_features, made.eps, made.momentum)] == [int, float, float]
    assert (made.num_features, made.eps, made.momentum) == (8, 0.5, 0.25)
    assert made(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)


def test_options_of_numpy_are_numbers():
    made = ExemplarNorm2d(
        np.int32(8), ("in", "gn"), groups=np.int64(4), reduction=np.int64(2), hidden=np.int8(5)
    )
    assert (made.groups, made.reduction, made.gate.fc1.out_features) == (4, 2, 5)
    assert {type(v) for v in (made.groups, made.reduction, made.gate.fc1.out_features)} == {int}


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
