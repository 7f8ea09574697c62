"""ConditionalNorm: values and gradients against the loop oracle, and its start as BatchNorm."""

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, ConditionalNorm1d, ConditionalNorm2d, ConditionalNorm3d, backend
from tests.family.family_cases import family_case
from tests.layers.layer_cases import (
    SPATIAL,
    assert_same_gradients,
    layer_gradients,
    oracle_gradients,
    snapshot,
)

CLASSES = {1: ConditionalNorm1d, 2: ConditionalNorm2d, 3: ConditionalNorm3d}
# float64 against the loop oracle, sums in another order.
TOL = 1e-10


@pytest.mark.parametrize("form", ["eager", "reference"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", SPATIAL)
def test_values_and_gradients_equal_the_oracle(layout, training, form):
    spatial = SPATIAL[layout]
    case = family_case("cbn", dims=max(len(spatial), 1), eps=0.01)
    layer = case.build(training=training)
    assert type(layer) is CLASSES[max(len(spatial), 1)]
    state, shape = snapshot(layer), (4, 6, *spatial)
    x, upstream = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    want, want_grads = oracle_gradients(case, x, state, upstream, training)
    with backend(form):
        got, got_grads = layer_gradients(layer, x, upstream)
    torch.testing.assert_close(got, want, rtol=TOL, atol=TOL)
    assert_same_gradients(got_grads, want_grads, TOL)
    assert min(g.abs().max() for g in want_grads.values()) > 1e-6  # every part is in play


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(
    "dims, native", [(1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)], ids=["1d", "2d", "3d"]
)
def test_starts_as_batch_norm(dims, native, momentum):
    """Outputs, input gradients and averages of PyTorch's own layer, over three steps and in evaluation."""
    options = {"eps": 0.01, "momentum": momentum, "dtype": torch.float64}
    layer, reference = CLASSES[dims](6, **options), native(6, **options)
    for training in (True, True, True, False):
        x = torch.randn(4, 6, *(5, 4, 3)[:dims], dtype=torch.float64) * 3 + 1
        upstream = torch.randn_like(x)
        got, got_grads = layer_gradients(layer.train(training), x, upstream)
        want, want_grads = layer_gradients(reference.train(training), x, upstream)
        torch.testing.assert_close(got, want, rtol=TOL, atol=TOL)
        shared = {name: got_grads[name] for name in want_grads}
        assert_same_gradients(shared, want_grads, TOL)
        for name, value in reference.named_buffers():
            torch.testing.assert_close(layer.get_buffer(name), value, rtol=TOL, atol=TOL)


def test_last_layer_has_a_gradient_at_the_first_step():
    layer = ConditionalNorm2d(6, dtype=torch.float64)
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    _, grads = layer_gradients(layer, x, torch.randn_like(x))
    assert all(g.abs().max() > 0 for name, g in grads.items() if not name.startswith("fc1"))
    assert grads["fc1.weight"].abs().max() == 0  # wakes as fc2 moves


@pytest.mark.parametrize(
    "channels, hidden, width", [(6, None, 8), (128, None, 8), (160, None, 10), (512, None, 32), (6, 3, 3)]
)
def test_hidden_width(channels, hidden, width):
    layer = ConditionalNorm2d(channels, hidden=hidden)
    assert layer.fc1.weight.shape == (width, channels) and layer.fc2.weight.shape == (2 * channels, width)


def test_each_sample_has_its_own_scale():
    layer = family_case("cbn").build(training=False)
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer(x[1:2]), y[1:2], rtol=TOL, atol=TOL)  # not of its neighbours, though
    scale = (y - y.mean((2, 3), keepdim=True)).std((2, 3)) / x.std((2, 3))
    assert (scale.std(0) > 1e-2).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"hidden": 0}, "hidden: expected a positive whole number, got 0"),
        ({"hidden": 2.5}, "hidden: expected a positive whole number, got 2.5"),
        ({"hidden": True}, "hidden: expected a positive whole number, got True"),
        ({"eps": -1.0}, "eps: expected a number that is not negative, got -1.0"),
        ({"momentum": 2.0}, r"momentum: expected a number in \[0, 1\] or None, got 2.0"),
        ({"normalizers": ("bn",)}, "norm 'cbn': expected options among hidden, .*got normalizers"),
        ({"dims": 4}, "dims: expected 1, 2 or 3, got 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        NORMS["cbn"](6, **options)


def test_wrong_inputs():
    layer = ConditionalNorm2d(6)
    with pytest.raises(ValueError, match=r"expected an input of 4 dimensions.*got shape"):
        layer(torch.randn(2, 6, 3))
    with pytest.raises(ValueError, match="expected 6 channels in dimension 1, got 5"):
        layer(torch.randn(2, 5, 3, 3))
