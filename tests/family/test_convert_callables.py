"""convert_norm with a callable: what it keeps, what is wanted already; arguments that are refused."""

import copy
import functools

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, ExemplarNorm2d, SwitchNorm2d, convert_norm
from tests.layers.layer_cases import randomise

# float64, K·γ·(1/K) and the order of sums are all that differ.
TOL = 1e-12


def test_a_callable_keeps_eps_and_momentum():
    for momentum in (0.3, None):
        layer = convert_norm(nn.BatchNorm2d(8, eps=0.25, momentum=momentum), SwitchNorm2d)
        assert (layer.eps, layer.momentum) == (0.25, momentum)
    group = convert_norm(nn.BatchNorm2d(8, eps=0.25), lambda c: nn.GroupNorm(2, c))
    assert group.eps == 0.25 and not hasattr(group, "momentum")
    source = randomise(nn.BatchNorm2d(8, eps=0.25).double())
    x = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    want = copy.deepcopy(source)(x)
    torch.testing.assert_close(convert_norm(source, ExemplarNorm2d)(x), want, rtol=TOL, atol=TOL)


class Wrapped(nn.Module):
    """What a callable may build: a layer that holds one that convert_norm knows."""

    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.bn(x)


class Centered(nn.Module):
    """A layer of no known kind, and of no telling name."""

    def __init__(self, channels):
        super().__init__()
        self.num_features = channels

    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True)


CALLABLES = {
    "class": SwitchNorm2d,
    "native-class": nn.InstanceNorm2d,
    "function": lambda c: SwitchNorm2d(c, ("ln", "bn")),
    "native-function": lambda c: nn.GroupNorm(2, c),
    "partial": functools.partial(ExemplarNorm2d, normalizers=("ln", "bn", "gn"), groups=1),
    "wrapped": lambda c: Wrapped(c),
    "unknown": lambda c: Centered(c),
    "unknown-class": Centered,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_converting_twice_with_a_callable_changes_nothing(name):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 4, 1), nn.GroupNorm(1, 4))
    )
    convert_norm(model, CALLABLES[name])
    kinds = {type(model[1]), type(model[2][1])}
    before = list(model.modules())
    assert len(kinds) == 1 and kinds != {nn.BatchNorm2d}
    assert list(convert_norm(model, CALLABLES[name]).modules()) == before


def test_a_function_that_refuses_the_size_of_a_layer_left_alone_is_no_hindrance():
    other = nn.Sequential(nn.BatchNorm2d(8), Centered(3))
    convert_norm(other, lambda c: nn.Sequential(NORMS["gn"](c, groups=4), nn.ReLU()))
    assert [type(m) for m in other[0]] == [nn.GroupNorm, nn.ReLU] and type(other[1]) is Centered
    with pytest.raises(ValueError, match="groups: expected a divisor of num_features = 6"):
        convert_norm(nn.BatchNorm2d(6), lambda c: NORMS["gn"](c, groups=4))


def test_a_function_of_the_same_class_with_other_settings_converts():
    model = nn.Sequential(nn.GroupNorm(4, 8, eps=0.25), nn.GroupNorm(2, 8))
    kept = model[1]
    convert_norm(model, lambda c: nn.GroupNorm(2, c))
    assert [m.num_groups for m in model] == [2, 2] and model[0].eps == 0.25 and model[1] is kept


class OfTwice(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.num_features = 2 * channels


@pytest.mark.parametrize(
    "norm, message",
    [
        (["en"], r"norm: expected one of bn, .* or a callable, got \['en'\]"),
        (None, "norm: expected one of bn, .* or a callable, got None"),
        (lambda c: None, "norm: expected a callable num_features → Module, got None"),
        (OfTwice, "norm: expected a layer of 8 channels, got a OfTwice of 16"),
    ],
    ids=["list", "none", "callable-of-none", "callable-of-others"],
)
def test_what_is_no_norm_is_refused(norm, message):
    model = nn.Sequential(nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match=message):
        convert_norm(model, norm)
    assert type(model[0]) is nn.BatchNorm2d


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="model: expected a Module, got 'x'"):
        convert_norm("x")


@pytest.mark.parametrize("skip", [5, [1], None])
def test_what_is_no_pattern_is_refused(skip):
    with pytest.raises(ValueError, match="skip: expected patterns of names, got"):
        convert_norm(nn.BatchNorm2d(8), skip=skip)
