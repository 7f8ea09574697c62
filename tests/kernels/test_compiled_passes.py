"""`backend("compiled")`: values, how often something is built, and that nothing falls out of the graph."""

import pytest
import torch
from torch._dynamo.utils import counters

from exemplar_norm import backend, passes_cpu
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
    # On a CPU, channels-last float32 and float64 leave moments, affine and reduce to the native kernels, as
    # they are faster there: dX alone is built. In bfloat16 all four are.
    # A bfloat16 result that float32 noise puts on the other side of a rounding is one eps off.
    for layout, dtype, tol, built in (
        ("nchw", torch.float32, 2e-5, 4),
        ("nhwc", torch.float32, 2e-5, 5),
        ("nhwc", torch.float64, 1e-11, 6),
        ("nhwc", torch.bfloat16, 8e-3, 10),
    ):
        for shape in ((3, 6, 5, 7), (2, 8, 4, 3)):
            step(shape, layout, dtype, tol)
            assert graphs() == built
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["large-mean", "outlier", "large-map"])
def test_moments_keep_their_digits(kind):
    x = torch.randn(1, 2, 160, 160)
    if kind == "outlier":
        x[:, :, 0, 0] = 1e6
    else:
        x += 1e4 if kind == "large-mean" else 30
    # Some roundings of the mean, and one of the deviation (6e-8 each), which a mean is used against: a sum
    # that has met the outlier rounds at its size.
    # Squares of 39 = 1e6 / S added to 1e12 may be lost one and all, 4e-5 of the sum; else some roundings.
    check_moments(x, of_mean=2e-7, of_deviation=6e-8, of_variance=4e-5 if kind == "outlier" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["large-mean", "outlier", "large-map"])
def test_channels_last_moments_in_bfloat16_keep_their_digits(kind, monkeypatch):
    """Of the channels-last ones, those that Inductor builds on a CPU."""
    monkeypatch.setattr(passes_cpu, "moments", lambda x: pytest.fail("not built"))
    # Around a mean of 1e4 bfloat16 goes in steps of 64: a smaller deviation would leave a constant.
    x = torch.randn(1, 2, 160, 160) * (64 if kind == "large-mean" else 1)
    if kind == "outlier":
        x[:, :, 0, 0] = 1e6
    else:
        x += 1e4 if kind == "large-mean" else 1
    # 25,600 values are added up one by one. If roundings (6e-8 each) go either way, they come to √25600 = 160
    # of them; few values differ in 8 bits, and equal ones round alike: a fourth of all of them is allowed to
    # the squares, and to the deviations, which cancel, the 160.
    check_moments(
        x.to(torch.bfloat16, memory_format=torch.channels_last),
        of_mean=2e-7,
        of_deviation=1e-5,
        of_variance=4e-4,
    )


def check_moments(x, of_mean, of_deviation, of_variance):
    """Against the same values in float64, to parts of the mean and the deviation, and of the variance."""
    mean, var = compiled_passes.moments(x.flatten(2))
    exact = x.double()
    deviation = exact.std((2, 3)).max().item()
    torch.testing.assert_close(mean.double(), exact.mean((2, 3)), rtol=of_mean, atol=of_deviation * deviation)
    torch.testing.assert_close(var.double(), exact.var((2, 3), correction=0), rtol=of_variance, atol=0)


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
