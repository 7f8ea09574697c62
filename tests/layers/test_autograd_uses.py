"""The layer inside autograd graphs as networks build them: in-place neighbours, partial and repeated use."""

import copy

import pytest
import torch
from torch import nn

from exemplar_norm import backend
from tests.layers.layer_cases import assert_same_gradients, layer_gradients, small_case, snapshot

BACKENDS = pytest.mark.parametrize("name", ["eager", "reference", "auto"])
KINDS = pytest.mark.parametrize("kind", ["en", "sn"])
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
# float64 against the loop oracle, and float64 against itself in another order.
TOL = 1e-9


def data(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (3, 6, 4, 3), dtype=torch.float64)


@BACKENDS
@KINDS
@PASSES
@FORMATS
def test_inplace_relu_after_the_layer(memory_format, training, kind, name):
    layer = small_case(kind).build(training=training)
    x, upstream = data().contiguous(memory_format=memory_format), data()
    with backend(name):
        want, want_grads = layer_gradients(nn.Sequential(layer, nn.ReLU()), x, upstream)
        got, got_grads = layer_gradients(nn.Sequential(layer, nn.ReLU(inplace=True)), x, upstream)
    assert (want == 0).any() and (want > 0).any()
    torch.testing.assert_close(got, want, rtol=0, atol=0)  # the same operations on the same numbers
    assert_same_gradients(got_grads, want_grads, 1e-15)


@BACKENDS
@KINDS
@PASSES
def test_output_can_be_changed_in_place(training, kind, name):
    """A residual sum in place: the layer must need neither its output nor a view of its input."""
    layer = small_case(kind).build(training=training)
    x, upstream = data(), data()
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    with backend(name):
        (layer(leaves[0]) + leaves[0]).backward(upstream)
        y = layer(leaves[1])
        before = leaves[1].detach().clone()
        y += leaves[1]
        assert torch.equal(leaves[1], before)
        y.backward(upstream)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=TOL, atol=TOL)


@BACKENDS
@KINDS
def test_input_changed_in_place_after_the_forward_raises(kind, name):
    layer, leaf = small_case(kind).build(), data().requires_grad_()
    x = leaf * 1
    with backend(name):
        y = layer(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@BACKENDS
@PASSES
@pytest.mark.parametrize("with_output", [False, True], ids=["ratio-only", "ratio-and-output"])
@pytest.mark.parametrize("descriptor", ["mean", "mean_std"])
def test_loss_on_the_ratio(descriptor, with_output, training, name):
    """The gradient of λ alone (the output unused), or of both, back to x and to the gate."""
    case = small_case("en", options={"descriptor": descriptor})
    layer = case.build(training=training)
    for p in layer.gate.parameters():
        p.data /= 3  # keeps tanh and softmax out of saturation
    state, x, on_ratio, on_output = snapshot(layer), data(), data(3, 4), data()

    def gradients(y, ratio, leaves):
        loss = (ratio * on_ratio).sum() + ((y * on_output).sum() if with_output else 0)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, grads, strict=True))

    leaf = x.clone().requires_grad_()
    own = {"x": leaf} | {key: value for key, value in state.items() if value.requires_grad}
    want = gradients(*case.oracle_with_ratio(leaf, state, training), own)

    ratios, leaf = [], x.clone().requires_grad_()
    layer.gate.register_forward_hook(lambda module, inputs, ratio: ratios.append(ratio))
    with backend(name):
        got = gradients(layer(leaf), ratios[0], {"x": leaf} | dict(layer.named_parameters()))
    assert want["x"].abs().max() > 1e-4  # the way through λ alone is there
    assert_same_gradients(got, want, TOL)


@BACKENDS
@KINDS
@PASSES
def test_two_uses_of_one_layer(training, kind, name):
    """Chained and side by side in one graph, against the oracle used the same way."""
    case = small_case(kind)
    layer = case.build(training=training)
    state, x, upstream = snapshot(layer), data(), data()
    running = {key: value.clone() for key, value in layer.named_buffers()}

    leaf = x.clone().requires_grad_()
    want = case.oracle(case.oracle(leaf, state, training) + leaf, state, training) * case.oracle(
        -leaf, state, training
    )
    names = [key for key, value in state.items() if value.requires_grad]
    want_grads = torch.autograd.grad(want, [leaf, *(state[key] for key in names)], upstream)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x) + x) * self.layer(-x)

    with backend(name):
        got, got_grads = layer_gradients(Net(), x, upstream)
    torch.testing.assert_close(got, want, rtol=TOL, atol=TOL)
    want_grads = dict(zip(["x", *(f"layer.{key}" for key in names)], want_grads, strict=True))
    assert_same_gradients({key: got_grads[key] for key in want_grads}, want_grads, TOL)
    if not training:
        assert all(torch.equal(value, running[key]) for key, value in layer.named_buffers())


@BACKENDS
@KINDS
@PASSES
def test_frozen_parameters(training, kind, name):
    layer = small_case(kind).build(training=training)
    x, upstream = data(), data()
    with backend(name):
        _, want = layer_gradients(layer, x, upstream)
        frozen = copy.deepcopy(layer).requires_grad_(False)
        leaf = x.clone().requires_grad_()
        frozen(leaf).backward(upstream)
        torch.testing.assert_close(leaf.grad, want["x"], rtol=TOL, atol=TOL)
        assert all(p.grad is None for p in frozen.parameters())

        for key in want.keys() - {"x"}:  # each parameter trained alone, on an input without gradient
            frozen.requires_grad_(False)
            parameter = frozen.get_parameter(key).requires_grad_()
            frozen(x).backward(upstream)
            assert_same_gradients({key: parameter.grad}, {key: want[key]}, TOL)
        frozen.requires_grad_(False)
        assert not frozen(x).requires_grad


@BACKENDS
@KINDS
@PASSES
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_autograd(context, training, kind, name):
    layer = small_case(kind).build(training=training)
    x = data().requires_grad_()
    twin = copy.deepcopy(layer)
    with backend(name):
        want = twin(x)
        with context():
            got = layer(x)
    assert want.requires_grad and not got.requires_grad
    assert got.is_inference() == (context is torch.inference_mode)
    torch.testing.assert_close(got, want.detach(), rtol=TOL, atol=TOL)
    for (key, value), other in zip(layer.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(value, other, msg=key)


@BACKENDS
@KINDS
def test_no_grad_forwards_do_not_disturb_a_graph(kind, name):
    """Statistics move in place between a forward and its backward: gradients must not notice."""
    layer = small_case(kind).build()
    x, upstream = data(), data()
    with backend(name):
        _, want = layer_gradients(layer, x, upstream)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        with torch.no_grad():
            layer(data())
        layer(data(5, 6, 2, 2))
        y.backward(upstream)
    torch.testing.assert_close(leaf.grad, want["x"], rtol=TOL, atol=TOL)
