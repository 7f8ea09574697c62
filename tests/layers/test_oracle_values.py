"""Values, ratios and gradients of EN and SN against the float64 loop oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exemplar_norm import backend, record_ratios
from tests.layers.layer_cases import (
    NORMALIZERS,
    SPATIAL,
    SUBSETS,
    Case,
    assert_same_gradients,
    layer_gradients,
    oracle_gradients,
    small_case,
    snapshot,
)

BACKENDS = ("reference", "eager")
# Both sides work in float64 (2e-16); two positions with close values amplify it by up to about σ²/ε = 1e5.
VALUES = {"rtol": 1e-9, "atol": 1e-9}
GRADIENTS = 1e-9
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def check(case: Case, shape: tuple[int, ...], training: bool) -> None:
    layer = case.build(training=training)
    state = snapshot(layer)
    x = torch.randn(shape, dtype=torch.float64) * 2 + torch.randn(shape[1]).view(-1, *[1] * (len(shape) - 2))
    upstream = torch.randn_like(x)
    want, want_grads = oracle_gradients(case, x, state, upstream, training)
    for name in BACKENDS:
        with backend(name):
            got, got_grads = layer_gradients(layer, x, upstream)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, want, **VALUES, msg=lambda text, name=name: f"{name}: {text}")
        assert_same_gradients(got_grads, want_grads, GRADIENTS)


@PASSES
@pytest.mark.parametrize("order", SUBSETS, ids="-".join)
@pytest.mark.parametrize("kind", ["en", "sn"])
def test_every_order_of_every_subset(kind, order, training):
    check(small_case(kind, normalizers=order), (3, 6, 2, 2), training)


@PASSES
@pytest.mark.parametrize("descriptor", ["mean", "mean_std"])
@pytest.mark.parametrize("rank", SPATIAL)
def test_every_rank_and_descriptor(rank, descriptor, training):
    case = small_case("en", dims=max(len(SPATIAL[rank]), 1), options={"descriptor": descriptor})
    check(case, (3, 6, *SPATIAL[rank]), training)


@PASSES
@pytest.mark.parametrize("rank", SPATIAL)
def test_every_rank_of_switch_norm(rank, training):
    check(small_case("sn", dims=max(len(SPATIAL[rank]), 1)), (3, 6, *SPATIAL[rank]), training)


@st.composite
def settings_of_a_layer(draw):
    channels = draw(st.integers(1, 11), label="channels")
    kind = draw(st.sampled_from(["en", "sn"]), label="kind")
    order = draw(st.permutations(NORMALIZERS), label="order")[: draw(st.integers(1, 4), label="K")]
    rank = draw(st.sampled_from(list(SPATIAL)), label="rank")
    spatial = tuple(draw(st.integers(1, 4)) for _ in SPATIAL[rank])
    options = {}
    if kind == "en":
        options = {
            "reduction": draw(st.integers(1, 14), label="reduction"),
            "hidden": draw(st.integers(1, 5), label="hidden"),
            "descriptor": draw(st.sampled_from(["mean", "mean_std"]), label="descriptor"),
        }
    case = Case(
        kind=kind,
        channels=channels,
        normalizers=tuple(order),
        dims=max(len(spatial), 1),
        groups=draw(
            st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]), label="groups"
        ),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.1]), label="eps"),
        options=options,
    )
    return case, (draw(st.integers(1, 4), label="N"), channels, *spatial)


@given(settings_of_a_layer(), st.booleans(), st.integers(0, 2**16))
def test_any_configuration_and_shape(settings, training, seed):
    torch.manual_seed(seed)
    check(*settings, training)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("descriptor", ["mean", "mean_std"])
@PASSES
def test_recorded_ratios(training, descriptor, name):
    case = small_case("en", options={"descriptor": descriptor})
    model = nn.Sequential(case.build(training=training))
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    _, want = case.oracle_with_ratio(x, snapshot(model[0]), training)
    with backend(name), record_ratios(model) as ratios:
        model(x)
    assert list(ratios) == ["0"]
    assert ratios["0"].shape == (4, 4)
    torch.testing.assert_close(ratios["0"].double(), want.detach(), **VALUES)


def test_default_reduction_where_channels_are_no_multiple():
    """Reduction 32 on 36 channels: 18 is the largest divisor of 36 that is not above 32."""
    case = Case("en", channels=36, options={"hidden": 3})
    layer = case.build()
    assert layer.gate.conv.weight.shape == (2, 18, 1)
    check(case, (2, 36, 2, 1), training=True)
