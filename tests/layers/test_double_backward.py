"""Gradients of gradients: right under ``backend("reference")``, elsewhere a clear error."""

import pytest
import torch

from exemplar_norm import backend
from tests.layers.layer_cases import assert_same_gradients, small_case, snapshot

KINDS = pytest.mark.parametrize("kind", ["en", "sn"])
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
LOSSES = {
    "constant-upstream": torch.sum,
    "square": lambda y: (y * y).sum(),
    "weighted": lambda y: (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum(),
}


def second_order(loss, run, leaves: dict[str, torch.Tensor], directions: list[torch.Tensor]):
    """∇⟨∇L, directions⟩ over all the leaves, x and parameters alike."""
    values = list(leaves.values())
    first = torch.autograd.grad(loss(run(leaves["x"])), values, create_graph=True, allow_unused=True)
    product = sum((g * d).sum() for g, d in zip(first, directions, strict=True) if g is not None)
    second = torch.autograd.grad(product, values, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, second, strict=True))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@PASSES
@KINDS
def test_reference_has_second_order_gradients(kind, training, loss):
    case = small_case(kind)
    layer = case.build(training=training)
    state = snapshot(layer)
    x = torch.randn(3, 6, 2, 3, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    directions = [torch.randn_like(x), *(torch.randn_like(p) for p in layer.parameters())]

    oracle_leaves = {"x": x.clone().requires_grad_()} | {name: state[name] for name in names}
    want = second_order(loss, lambda x: case.oracle(x, state, training), oracle_leaves, directions)
    layer_leaves = {"x": x.clone().requires_grad_()} | dict(layer.named_parameters())
    with backend("reference"):
        got = second_order(loss, layer, layer_leaves, directions)
    assert want["x"].abs().max() > 1e-3  # the curvature is there
    # float64; second derivatives carry 1/σ³ and lose up to three digits more than first ones.
    assert_same_gradients(got, want, 1e-8)


@PASSES
@KINDS
def test_gradgradcheck_of_reference(kind, training):
    options = {"reduction": 1, "hidden": 2} if kind == "en" else {}
    layer = small_case(kind, channels=2, dims=1, normalizers=("ln", "bn", "in"), options=options).build(
        training=training
    )
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: value.clone() for name, value in layer.named_buffers()}

    def run(x, *values):
        with backend("reference"):
            state = dict(zip(names, values, strict=True))
            state |= {name: value.clone() for name, value in buffers.items()}
            return torch.func.functional_call(layer, state, (x,))

    inputs = [torch.randn(2, 2, 3, dtype=torch.float64), *(p.detach() for p in layer.parameters())]
    assert torch.autograd.gradgradcheck(run, [value.clone().requires_grad_() for value in inputs])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("wanted", ["x", "weight"])
@pytest.mark.parametrize("name", ["eager", "auto"])
@PASSES
@KINDS
def test_other_backends_raise_and_name_the_way_out(kind, training, name, wanted, loss):
    layer = small_case(kind).build(training=training)
    x = torch.randn(3, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    with backend(name), pytest.raises(RuntimeError, match=r"backend\([\"']reference[\"']\)"):
        leaf = x if wanted == "x" else layer.weight
        (first,) = torch.autograd.grad(loss(layer(x)), leaf, create_graph=True)
        torch.autograd.grad((first * first).sum(), leaf)


@pytest.mark.parametrize("name", ["eager", "auto"])
def test_first_order_with_a_retained_graph_works_twice(name):
    layer = small_case("en").build()
    x = torch.randn(3, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    with backend(name):
        y = layer(x)
        (once,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (twice,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(once, twice)
