"""Networks under torch.compile: one graph for each way they are called, and what they compute without."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.shufflenetv2 import InvertedResidual

from exemplar_norm import convert_norm
from exemplar_norm.base import MomentLayer
from tests.layers.layer_cases import assert_same_gradients, layer_gradients, randomise

CONVERSIONS = {"en": ("en", {}), "en-fused": ("en", {"fuse": True}), "sn": ("sn", {})}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def converted(make, conversion):
    """In float64, with gates and coefficients that are not those of the start."""
    norm, options = CONVERSIONS[conversion]
    net = convert_norm(make(), norm, **options).double()
    layers = [randomise(m) for m in net.modules() if isinstance(m, MomentLayer)]
    assert layers and any(layer.relu for layer in layers) == (conversion == "en-fused")
    return net


def assert_compiles(net, shape, tol):
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    # Each mode is a graph of its own, and a second step reuses it, although the averages have moved.
    for training, graphs in ((True, 1), (True, 1), (False, 2), (False, 2), (True, 2)):
        x = torch.randn(shape, dtype=torch.float64)
        upstream = torch.randn_like(twin.eval()(x))
        want, want_grads = layer_gradients(twin.train(training), x, upstream)
        got, got_grads = layer_gradients(compiled.train(training), x, upstream)
        assert counters["stats"]["unique_graphs"] == graphs
        assert not counters["graph_break"]
        torch.testing.assert_close(got, want, rtol=tol, atol=tol)
        got_grads = {name.removeprefix("_orig_mod."): g for name, g in got_grads.items()}
        assert_same_gradients(got_grads, want_grads, tol)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=tol, atol=tol)


@pytest.mark.parametrize("conversion", ["en", "en-fused", pytest.param("sn", marks=pytest.mark.slow)])
def test_a_residual_block_is_one_graph(conversion):
    # A layer before a ReLU and one before a sum and a ReLU.
    # float64: the plain form against the eager one, the same formula in another order.
    assert_compiles(converted(lambda: BasicBlock(6, 6), conversion), (3, 6, 4, 3), tol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_shuffled_block_is_one_graph(conversion):
    # Half of the channels passes by: the first convolution has a view for an input.
    assert_compiles(converted(lambda: InvertedResidual(8, 8, 1), conversion), (3, 8, 4, 3), tol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_network_is_one_graph(conversion):
    net = converted(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5), conversion)
    # Through 17 layers, of 8 values of a channel at the end; gates amplify rounding.
    assert_compiles(net, (2, 3, 64, 64), tol=1e-6)
