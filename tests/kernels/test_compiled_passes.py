"""`backend("compiled")`: values, how often something is built, and that nothing falls out of the graph."""

import pytest
import torch
from torch._dynamo.utils import counters

from exemplar_norm import backend
from exemplar_norm.kernels import compiled_passes
from tests.layers.layer_cases import assert_same_gradients, layer_gradients, small_case

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Inductor
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.fixture
def fresh_compiler():
    """Nothing built before, and nothing left behind."""
    torch._dynamo.reset()
    compiled_passes._built.clear()
    counters.clear()
    yield
    torch._dynamo.reset()
    compiled_passes._built.clear()


def step(shape, layout, dtype=torch.float32, tol=2e-5):
    layer = small_case("sn", channels=shape[1], groups=2).build(dtype)
    x = torch.randn(shape, dtype=dtype).to(memory_format=FORMATS[layout])
    upstream = torch.randn_like(x)
    with backend("reference"):
        want, want_grads = layer_gradients(layer, x, upstream)
    with backend("compiled"):
        got, got_grads = layer_gradients(layer, x, upstream)
    assert got.dtype == dtype and got.stride() == x.stride()
    # float32 sums in another order, with σ > 0.3 in the denominators; gradients pass the statistics twice.
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    assert_same_gradients(got_grads, want_grads, 5 * tol, floor=1)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.usefixtures("fresh_compiler")
def test_sizes_of_a_network_share_what_is_built_once():
    step((4, 4, 4, 4), "nchw")  # equal sizes must not become one symbol
    built = graphs()
    assert built == 4  # moments, affine, reduce, dX
    for shape in ((2, 6, 5, 7), (3, 8, 2, 2), (5, 4, 9, 3)):
        step(shape, "nchw")
    assert graphs() == built
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_layout_and_a_dtype_are_families_of_their_own():
    for number, (layout, dtype, tol) in enumerate(
        [("nchw", torch.float32, 2e-5), ("nhwc", torch.float32, 2e-5), ("nhwc", torch.float64, 1e-11)], 1
    ):
        for shape in ((3, 6, 5, 7), (2, 8, 4, 3)):
            step(shape, layout, dtype, tol)
            assert graphs() == 4 * number
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", ["large-mean", "outlier", "large-map"])
def test_moments_keep_their_digits(kind, layout):
    x = torch.randn(1, 2, 160, 160)
    if kind == "outlier":
        x[:, :, 0, 0] = 1e6
    else:
        x += 1e4 if kind == "large-mean" else 30
    x = x.to(memory_format=FORMATS[layout])
    mean, var = compiled_passes.moments(x.flatten(2))
    exact = x.double()
    # Some roundings of the mean, and one of the deviation (6e-8 each), which a mean is used against: a sum
    # that has met the outlier rounds at its size.
    deviation = exact.std((2, 3)).max().item()
    torch.testing.assert_close(mean.double(), exact.mean((2, 3)), rtol=2e-7, atol=6e-8 * deviation)
    # Squares of 39 = 1e6 / S added to 1e12 may be lost one and all, 4e-5 of the sum; else some roundings.
    rtol = 4e-5 if kind == "outlier" else 1e-5
    torch.testing.assert_close(var.double(), exact.var((2, 3), correction=0), rtol=rtol, atol=0)


@pytest.mark.slow
def test_bfloat16():
    x = (torch.randn(2, 4, 14, 15) * 4 + 300).bfloat16()
    layer = small_case("sn", channels=4).build(torch.float32)
    with backend("reference"):
        want, want_grads = layer_gradients(layer, x, torch.ones_like(x) * x)
    with backend("compiled"):
        got, got_grads = layer_gradients(layer, x, torch.ones_like(x) * x)
    # A result that float32 noise puts on the other side of a rounding is one eps off.
    torch.testing.assert_close(got, want, rtol=8e-3, atol=1e-3)
    assert_same_gradients({"weight": got_grads["weight"]}, {"weight": want_grads["weight"]}, 1e-4)


def test_no_double_backward():
    layer = small_case("sn").build(torch.float32)
    x = torch.randn(2, 6, 3, 3, requires_grad=True)
    with backend("compiled"), pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
