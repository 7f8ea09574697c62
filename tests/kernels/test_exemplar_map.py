"""EN's map with its backward by hand: the plain form's values and gradients, from fewer operations."""

from itertools import combinations

import pytest
import torch
from torch import nn

from benchmarks.launches import launches
from exemplar_norm import ExemplarNorm2d, backend, record_ratios
from tests.layers.layer_cases import NORMALIZERS, Case, assert_same_gradients, layer_gradients

MIXTURES = [names for size in range(1, 5) for names in combinations(NORMALIZERS, size)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("descriptor", ["mean", "mean_std"])
@pytest.mark.parametrize("normalizers", MIXTURES, ids="-".join)
def test_equals_plain_autograd(normalizers, descriptor, training):
    options = {"reduction": 2, "hidden": 5, "descriptor": descriptor}
    layer = Case("en", 12, normalizers[::-1], groups=3, options=options).build(training=training)
    x, upstream = torch.randn(2, 4, 12, 3, 2, dtype=torch.float64)
    with backend("reference"):
        want, want_grads = layer_gradients(layer, x, upstream)
    with backend("eager"):
        got, got_grads = layer_gradients(layer, x, upstream)
    # float64, the same formula in another order.
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    assert_same_gradients(got_grads, want_grads, 1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_operations_of_a_training_step(layout):
    """Of a whole layer, moments and passes included, with samples small enough for one piece."""
    layer = ExemplarNorm2d(64)
    x = torch.randn(4, 64, 7, 7).to(memory_format=layout).requires_grad_()
    with backend("eager"):
        counted = launches(layer, x, torch.ones_like(x))
    # 47, and 61 or 62, with PyTorch 2.15: bounds to notice growth by, with a tenth more for what another
    # release counts otherwise.
    assert counted["launches_forward"] <= 52
    assert counted["launches_backward"] <= 68


def test_whatever_has_to_see_the_gate_sees_it():
    layer = ExemplarNorm2d(8, reduction=4)
    x = torch.randn(3, 8, 4, 4)
    net = nn.Sequential(layer)
    with record_ratios(net) as ratios:
        net(x)
    assert torch.equal(ratios["0"], torch.full((3, 3), 1 / 3))
    seen = []
    handle = layer.gate.register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    handle.remove()
    layer(x)
    assert len(seen) == 1


def test_a_hook_may_change_the_ratio_and_an_observer_costs_nothing():
    layer = ExemplarNorm2d(6).eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 6, 5, 5)
    layer(x)
    one_hot = torch.tensor([0.0, 0.0, 1.0])
    seen = []
    layer.gate.observe(lambda gate, inputs, ratio: seen.append(ratio))
    assert layer.gate.is_plain()
    handle = layer.gate.register_forward_hook(lambda gate, inputs, ratio: one_hot.expand_as(ratio))
    assert not layer.gate.is_plain()
    mean, var = (average[:, None, None] for average in (layer.running_mean, layer.running_var))
    batch_norm = (x - mean) / (var + layer.eps).sqrt()
    # float32: a few roundings of values of size O(1).
    torch.testing.assert_close(layer(x), batch_norm, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert layer.gate.is_plain() and not torch.allclose(layer(x), batch_norm, atol=1e-2)
    assert len(seen) == 2
