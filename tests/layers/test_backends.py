"""The backends among each other: gradcheck, equality, and what a training forward keeps in memory."""

import pytest
import torch

from exemplar_norm import ExemplarNorm2d, backend
from tests.layers.layer_cases import (
    SPATIAL,
    Case,
    assert_same_gradients,
    layer_gradients,
    randomise,
    small_case,
)

KINDS = pytest.mark.parametrize("kind", ["en", "sn"])
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@PASSES
@KINDS
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3), (2, 4, 2, 2)], ids=["NC", "NCL", "NCHW"])
def test_gradcheck_of_eager(kind, shape, training):
    case = small_case(
        kind,
        channels=4,
        dims=max(len(shape) - 2, 1),
        options={"reduction": 2, "hidden": 2} if kind == "en" else {},
    )
    layer = case.build(training=training)
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: value.clone() for name, value in layer.named_buffers()}

    def run(x, *values):
        with backend("eager"):
            state = dict(zip(names, values, strict=True))
            state |= {name: value.clone() for name, value in buffers.items()}
            return torch.func.functional_call(layer, state, (x,))

    inputs = [torch.randn(shape, dtype=torch.float64), *(p.detach() for p in layer.parameters())]
    assert torch.autograd.gradcheck(run, [value.clone().requires_grad_() for value in inputs])


# One float32 rounding is 6e-8; sums over up to 5·9·7 positions and divisions by σ > 0.3 cost two digits more,
# and gradients, which pass the gate and the statistics twice, a third.
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float32, 2e-5), (torch.float64, 1e-11)], ids=["float32", "float64"]
)


@PRECISIONS
@PASSES
@KINDS
@pytest.mark.parametrize("name", ["eager", "auto"])
@pytest.mark.parametrize("spatial", [*SPATIAL.values(), (9, 7)], ids=[*SPATIAL, "odd-map"])
def test_equals_reference(spatial, name, kind, training, dtype, tol):
    layer = small_case(kind, channels=12, groups=3, dims=max(len(spatial), 1)).build(dtype, training)
    x = torch.randn(5, 12, *spatial, dtype=dtype)
    upstream = torch.randn_like(x)
    with backend("reference"):
        want, want_grads = layer_gradients(layer, x, upstream)
    with backend(name):
        got, got_grads = layer_gradients(layer, x, upstream)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    # An instance of one value (rank NC) has terms of 1/sqrt(ε) = 316 in dX that cancel: hence a floor of 1.
    assert_same_gradients(got_grads, want_grads, 10 * tol, floor=1)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@KINDS
def test_equals_reference_on_a_large_map_with_two_threads(kind, channels_last):
    """Large enough for torch to split every pass among threads."""
    layer = small_case(kind, channels=16, groups=4).build()
    x = torch.randn(4, 16, 57, 61, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    upstream = torch.randn_like(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with backend("reference"):
            want, want_grads = layer_gradients(layer, x, upstream)
        with backend("eager"):
            got, got_grads = layer_gradients(layer, x, upstream)
    finally:
        torch.set_num_threads(threads)
    # float64 sums of up to 4·57·61 terms in another order.
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert_same_gradients(got_grads, want_grads, 1e-10)


def test_backend_is_restored_and_nests():
    """Only "reference" has double backward, so that tells which backend is active."""
    layer = Case("en", options={"hidden": 3}).build()

    def twice_differentiable() -> bool:
        x = torch.randn(3, 6, 2, 2, dtype=torch.float64, requires_grad=True)
        try:
            (dx,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
            dx.sum().backward()
        except RuntimeError:
            return False
        return True

    assert not twice_differentiable()
    with backend("reference"):
        assert twice_differentiable()
        with backend("eager"):
            assert not twice_differentiable()
        assert twice_differentiable()
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert not twice_differentiable()


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize("after_relu", [False, True], ids=["leaf", "after-relu"])
@PASSES
def test_only_the_input_is_saved(training, after_relu, memory_format):
    layer = randomise(ExemplarNorm2d(32)).train(training)
    x = torch.randn(8, 32, 28, 28).contiguous(memory_format=memory_format).requires_grad_()
    source = x.relu() if after_relu else x
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        backend("eager"),
    ):
        y = layer(source)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    size = source.numel() * source.element_size()
    assert y.requires_grad
    # X itself must be there; a tenth of it is far more than all (N, C) numbers and parameters (at most 0.04).
    assert size <= sum(storages.values()) <= 1.1 * size
