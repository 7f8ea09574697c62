"""The layouts of the public SN and SSN code, by load_weights and by plain load_state_dict."""

import logging

import pytest
import torch
from torch import nn

from exemplar_norm import load_weights
from tests.family.family_cases import family_case

K = ("in", "ln", "bn")


def public_layout(layer, dims, ssn=False):
    """The layer's state as the public SN (SSN) code has it."""
    C = layer.num_features
    ones = (1,) * dims
    state = layer.state_dict()
    public = {
        "weight": state["weight"].reshape(1, C, *ones),
        "bias": state["bias"].reshape(1, C, *ones),
        "mean_weight": state["mean_weight"],
        "var_weight": state["var_weight"],
        "running_mean": state["running_mean"].reshape(1, C, 1),
        "running_var": state["running_var"].reshape(1, C, 1),
    }
    if ssn:
        public |= {"radius": state["radius"].reshape(1), "mean_fixed": torch.tensor([False])}
        public |= {"var_fixed": torch.tensor([True])}
    return public


LOADERS = {
    "load_weights": lambda model, state: load_weights(
        model, {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    ),
    "load_state_dict": lambda model, state: model.load_state_dict(state),
}
LOADS = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@LOADS
@pytest.mark.parametrize("channels", [6, 1])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sn", "ssn"])
def test_public_switchable_normalization_layout(kind, dims, channels, load):
    normalizers = ("ln", "bn") if dims == 1 else K
    case = family_case(kind, dims=dims, normalizers=normalizers, channels=channels, groups=1)
    source, target = case.build(training=False), case.build(training=False)
    state = {f"0.{key}": v for key, v in public_layout(source, dims, kind == "ssn").items()}
    names = list(state)
    target.num_batches_tracked.fill_(7)
    load(nn.Sequential(target), state)
    x = torch.randn(3, channels, *(4, 3, 2)[:dims], dtype=torch.float64)
    assert torch.equal(target(x), source(x))
    assert target.num_batches_tracked == 0
    assert list(state) == names and state["0.weight"].dim() == dims + 2  # the given state is as it was


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("sn", {"weight": torch.ones(1, 7, 1, 1)}, "size mismatch for 0.weight"),
        ("sn", {"weight": torch.ones(3, 2, 1, 1)}, "size mismatch for 0.weight"),
        ("sn", {"mean_weight": torch.ones(1, 3)}, "size mismatch for 0.mean_weight"),
        ("sn", {"mean_fixed": torch.tensor([True])}, 'Unexpected key.*"0.mean_fixed"'),
        ("sn", {"radius": torch.zeros(1)}, 'Unexpected key.*"0.radius"'),
        ("sn", {"running_mean": None}, 'Missing key.*"0.running_mean"'),
        ("ssn", {"radius": torch.zeros(2)}, "size mismatch for 0.radius"),
        ("ssn", {"radius": None}, 'Missing key.*"0.radius"'),
        ("ssn", {"weight_fixed": torch.zeros(1)}, 'Unexpected key.*"0.weight_fixed"'),
    ],
)
def test_plain_loading_stays_strict_about_anything_else(kind, change, says):
    layer = family_case(kind, normalizers=K).build()
    state = public_layout(layer, 2, kind == "ssn") | change
    state = {f"0.{key}": value for key, value in state.items() if value is not None}
    with pytest.raises(RuntimeError, match=says):
        nn.Sequential(layer).load_state_dict(state)


def test_ssn_state_without_radius_keeps_the_own_one(caplog):
    sources = [family_case("ssn", normalizers=K).build() for _ in range(2)]
    targets = [family_case("ssn", normalizers=K, radius=0.6).build() for _ in range(2)]
    own = [target.radius.clone() for target in targets]
    state = {
        f"{i}.{key}": v for i, s in enumerate(sources) for key, v in public_layout(s, 2, ssn=True).items()
    }
    del state["0.radius"], state["1.radius"]
    with caplog.at_level(logging.INFO, logger="exemplar_norm"):
        load_weights(nn.Sequential(*targets), state)
    assert [r.getMessage() for r in caplog.records] == ["checkpoint without radius, own kept: 2 layers: 0, 1"]
    assert [target.radius for target in targets] == own and own[0] > 0
    assert torch.equal(targets[1].mean_weight, sources[1].mean_weight)


@pytest.mark.parametrize("bad", [-1e-3, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["sn", "en", "cbn"])
def test_variances_that_are_none_are_refused(kind, bad):
    source, target = (nn.Sequential(nn.ReLU(), family_case(kind).build()) for _ in range(2))
    state = {key: value.clone() for key, value in source.state_dict().items()}
    state["1.running_var"][2] = bad
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"^1: expected a running_var.*running_statistics=False"):
        load_weights(target, state)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    load_weights(target, state, running_statistics=False)
    assert torch.equal(target[1].weight, source[1].weight)
    assert torch.equal(target[1].running_var, before["1.running_var"])


def test_a_shared_layer_is_translated_under_each_name():
    source, target = (family_case("sn", normalizers=K).build() for _ in range(2))
    state = {f"{i}.{key}": value for i in (0, 1) for key, value in public_layout(source, 2).items()}
    load_weights(nn.Sequential(target, target), state)
    assert torch.equal(target.weight, source.weight)


def test_without_running_statistics_summed_buffers_stay_out():
    source, target = (family_case("sn", normalizers=K).build() for _ in range(2))
    before = {
        k: target.state_dict()[k].clone() for k in ("running_mean", "running_var", "num_batches_tracked")
    }
    state = public_layout(source, 2)
    state["running_mean"] = state["running_mean"] * 5000
    load_weights(target, state, running_statistics=False)
    assert torch.equal(target.weight, source.weight)
    assert all(torch.equal(target.state_dict()[k], v) for k, v in before.items())
    del state["running_mean"], state["running_var"]  # nor need they be there
    load_weights(target, state, running_statistics=False)
