"""functorch transforms, copies and compilation of the layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from exemplar_norm import backend
from tests.layers.layer_cases import SPATIAL, assert_same_gradients, layer_gradients, small_case

KINDS = pytest.mark.parametrize("kind", ["en", "sn"])
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
# float64, the same formula in another order of operations.
TOL = 1e-10


def data(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (3, 6, 4, 3), dtype=torch.float64)


@PASSES
@KINDS
def test_functional_grad_equals_autograd(kind, training):
    layer, x, upstream = small_case(kind).build(training=training), data(), data()
    _, want = layer_gradients(copy.deepcopy(layer), x, upstream)
    parameters = {name: p.detach().clone() for name, p in layer.named_parameters()}
    buffers = {name: b.clone() for name, b in layer.named_buffers()}

    def loss(parameters, x):
        own = {name: b.clone() for name, b in buffers.items()}
        return (functional_call(layer, (parameters, own), (x,)) * upstream).sum()

    by_parameter, by_x = grad(loss, argnums=(0, 1))(parameters, x)
    assert_same_gradients({"x": by_x} | by_parameter, want, TOL)


@pytest.mark.parametrize("shared_input", [True, False], ids=["shared-input", "own-input"])
@KINDS
def test_vmap_over_an_ensemble(kind, shared_input):
    layers = [small_case(kind).build(training=False) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = data() if shared_input else data(3, 2, 6, 4, 3)

    def run(parameters, buffers, x):
        return functional_call(layers[0], (parameters, buffers), (x,))

    got = vmap(run, in_dims=(0, 0, None if shared_input else 0))(parameters, buffers, x)
    want = torch.stack([layer(x if shared_input else x[i]) for i, layer in enumerate(layers)])
    torch.testing.assert_close(got, want, rtol=TOL, atol=TOL)


@KINDS
def test_per_sample_gradients(kind):
    layer, x = small_case(kind).build(training=False), data()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    buffers = dict(layer.named_buffers())

    def loss(parameters, sample):
        return functional_call(layer, (parameters, buffers), (sample[None],)).square().sum()

    got = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for n in range(len(x)):
        _, want = layer_gradients(layer, x[n : n + 1], 2 * layer(x[n : n + 1]).detach())
        del want["x"]
        assert_same_gradients({name: g[n] for name, g in got.items()}, want, TOL)


# Raised by torch itself while it loads the rules of forward mode.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")


@FORWARD_MODE
@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("how", ["jvp", "dual"])
@PASSES
@KINDS
def test_forward_mode_is_the_transpose_of_backward(kind, training, how, name):
    """⟨u, J t⟩ = ⟨Jᵀ u, t⟩, the right side from plain autograd."""
    layer, x, tangent, upstream = small_case(kind).build(training=training), data(), data(), data()
    want, grads = layer_gradients(copy.deepcopy(layer), x, upstream)
    buffers = {key: b.clone() for key, b in layer.named_buffers()}

    def run(x):  # functorch forbids changing captured tensors, so the buffers belong to the function
        return functional_call(layer, {key: b.clone() for key, b in buffers.items()}, (x,))

    with backend(name):
        if how == "jvp":
            y, directional = jvp(run, (x,), (tangent,))
        else:
            with forward_ad.dual_level():
                y, directional = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    torch.testing.assert_close(y.detach(), want, rtol=TOL, atol=TOL)
    torch.testing.assert_close(
        (directional * upstream).sum(), (grads["x"] * tangent).sum(), rtol=1e-9, atol=1e-9
    )


@FORWARD_MODE
@KINDS
def test_eager_has_no_forward_mode_and_says_so(kind):
    layer, x, tangent = small_case(kind).build(), data(), data()
    with backend("eager"):
        with pytest.raises(RuntimeError):
            jvp(layer, (x,), (tangent,))
        with pytest.raises(RuntimeError), forward_ad.dual_level():
            layer(forward_ad.make_dual(x, tangent))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
@PASSES
@KINDS
def test_copies_are_equal_and_independent(kind, training, clone):
    layer = small_case(kind).build(training=training)
    x, upstream = data(), data()
    layer(x)
    twin = clone(layer)
    assert type(twin) is type(layer) and twin.training == training
    assert twin.extra_repr() == layer.extra_repr()
    want, want_grads = layer_gradients(layer, x, upstream)
    got, got_grads = layer_gradients(twin, x, upstream)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert_same_gradients(got_grads, want_grads, 1e-15)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(p.abs().sum() > 0 for p in layer.parameters())


COMPILED = {
    "NC-training": ("NC", True, 0.1),
    "NCHW-training-cumulative": ("NCHW", True, None),
    "NCHW-evaluation": ("NCHW", False, 0.1),
    "NCDHW-training": ("NCDHW", True, 0.1),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what Inductor warns about on this machine is not ours
@pytest.mark.parametrize(("rank", "training", "momentum"), COMPILED.values(), ids=COMPILED)
@KINDS
def test_compiled_whole_equals_eager(kind, rank, training, momentum):
    torch.compiler.reset()
    shape = (3, 6, *SPATIAL[rank])
    case = small_case(kind, dims=max(len(shape) - 2, 1), options={"momentum": momentum})
    layer = case.build(torch.float32, training)
    twin = copy.deepcopy(layer)
    x, upstream = torch.randn(shape), torch.randn(shape)
    compiled = torch.compile(layer, fullgraph=True)
    for _ in range(2):
        with backend("eager"):
            want, want_grads = layer_gradients(twin, x, upstream)
        got = compiled(leaf := x.clone().requires_grad_())
        grads = torch.autograd.grad(got, [leaf, *layer.parameters()], upstream)
        # float32 sums in another order, with σ > 0.3 in the denominators.
        torch.testing.assert_close(got.detach(), want, rtol=2e-5, atol=2e-5)
        assert_same_gradients(dict(zip(want_grads, grads, strict=True)), want_grads, 1e-4)
    for value, other in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_network_with_neighbours():
    torch.compiler.reset()
    net = nn.Sequential(nn.Conv2d(3, 6, 3), small_case("en").build(torch.float32), nn.ReLU(inplace=True))
    net = net.to(memory_format=torch.channels_last)
    twin = copy.deepcopy(net)
    x = torch.randn(3, 3, 8, 7).contiguous(memory_format=torch.channels_last)
    want, got = twin(x), torch.compile(net, fullgraph=True)(x)
    want.square().sum().backward()
    got.square().sum().backward()
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    for value, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            value.grad, other.grad, rtol=1e-4, atol=1e-4 * other.grad.abs().max().item()
        )
