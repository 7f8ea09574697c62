"""The layers under autocast, torch.func, copying, pickling and symbolic tracing."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from tests.family.family_cases import FAMILY, WITH_BN, family_case
from tests.layers.layer_cases import layer_gradients

KINDS = pytest.mark.parametrize("kind", WITH_BN)


def data(*shape, dtype=torch.float64):
    return torch.randn(shape or (3, 6, 4, 3), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@KINDS
def test_autocast_keeps_statistics_and_map_in_float32(kind, dtype):
    """The layer alone sees no low precision: exactly as without autocast, output dtype that of its input."""
    layer, x = family_case(kind).build(torch.float32), data(dtype=torch.float32)
    upstream = torch.randn_like(x)
    want, want_grads = layer_gradients(copy.deepcopy(layer), x, upstream)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        got = layer(leaf)
    got.backward(upstream)  # outside, as torch asks for
    assert torch.equal(got, want) and got.dtype == torch.float32
    got_grads = {"x": leaf.grad} | {name: p.grad for name, p in layer.named_parameters()}
    assert all(torch.equal(got_grads[name], g) for name, g in want_grads.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@KINDS
def test_autocast_network_trains(kind, dtype):
    """A convolution hands over low precision; statistics, averages and gradients stay float32 and finite."""
    layer = family_case(kind).build(torch.float32)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.Conv2d(6, 2, 1))
    exact = copy.deepcopy(net).double()
    x = data(3, 3, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        y = net(x)
        y.float().square().mean().backward()
    assert y.dtype == dtype and layer.running_var.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
    want = exact(x.double())
    # Two convolutions in 8 (11) bits: a few units in the last place of the largest output.
    bits = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert (y.double() - want).abs().max() <= 8 * bits * want.abs().max()
    torch.testing.assert_close(
        layer.running_mean.double(), exact[1].running_mean, rtol=8 * bits, atol=8 * bits
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@KINDS
def test_functional_call(kind, training):
    layer, other = family_case(kind).build(training=training), family_case(kind).build(training=training)
    x = data()
    state = {name: value.detach().clone() for name, value in other.state_dict().items()}
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    got = functional_call(layer, state, (x,))
    assert torch.equal(got, other(x))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    # The averages that were passed in are those that move.
    assert all(torch.equal(state[name], b) for name, b in other.named_buffers())


@KINDS
def test_vmap_over_stacked_models(kind):
    layers = [family_case(kind).build(training=False) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = data(3, 2, 6, 4, 3)

    def run(parameters, buffers, x):
        return functional_call(layers[0], (parameters, buffers), (x,))

    got = vmap(run)(parameters, buffers, x)
    want = torch.stack([layer(own) for layer, own in zip(layers, x, strict=True)])
    # float64, one formula in another order
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: _saved(layer),
}


def _saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
@KINDS
def test_copies_are_equal_and_apart(how, kind):
    layer, x = family_case(kind).build(), data()
    layer(x).sum().backward()
    twin = COPIES[how](layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    want, want_grads = layer_gradients(copy.deepcopy(layer), x, x)
    got, got_grads = layer_gradients(twin, x, x)
    assert torch.equal(got, want) and all(torch.equal(got_grads[n], g) for n, g in want_grads.items())
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert repr(twin) == repr(layer)


@pytest.mark.parametrize("kind", FAMILY)
def test_symbolic_tracing_as_a_leaf(kind):
    """torch.fx cannot look into a layer that checks its input's rank: it traces around it, when told so."""

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return type(module).__module__.startswith("exemplar_norm") or super().is_leaf_module(module, name)

    net = nn.Sequential(nn.Conv2d(3, 6, 3), family_case(kind).build(torch.float32), nn.ReLU()).eval()
    traced = torch.fx.GraphModule(net, Tracer().trace(net))
    x = data(2, 3, 6, 6, dtype=torch.float32)
    assert torch.equal(traced(x), net(x))
    assert "call_module" in {node.op for node in traced.graph.nodes}
