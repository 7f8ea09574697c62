"""Low precision, large means, constants and outliers: errors as good as BatchNorm's, nothing infinite."""

import pytest
import torch
import torch.nn.functional as F

from exemplar_norm import ExemplarNorm2d, backend
from tests import reference
from tests.layers.layer_cases import (
    DEVICE,
    FORMS,
    Case,
    assert_same_gradients,
    layer_gradients,
    oracle_gradients,
    small_case,
    snapshot,
)

KINDS = pytest.mark.parametrize("kind", ["en", "sn"])
BACKENDS = pytest.mark.parametrize("name", FORMS)
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def laid_out(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def tame(layer: torch.nn.Module) -> torch.nn.Module:
    """Random parameters of moderate size, so that outputs are O(1) and the gate is not in saturation."""
    with torch.no_grad():
        for key, value in layer.named_parameters():
            value.copy_(0.5 + torch.rand_like(value) if key == "weight" else 0.5 * torch.randn_like(value))
    return layer


def largest(x: torch.Tensor) -> float:
    return x.detach().abs().max().item()


def batch_norm_errors(x: torch.Tensor, upstream: torch.Tensor) -> tuple[float, float]:
    """Largest errors of PyTorch's BatchNorm on this input, in this layout: of the output and of dX."""

    def run(x):
        leaf = x.clone().requires_grad_()
        y = F.batch_norm(leaf, None, None, training=True)
        return y, torch.autograd.grad(y, leaf, upstream.to(x.dtype))[0]

    (y, dx), (y_exact, dx_exact) = run(x), run(x.double().contiguous())
    return largest(y - y_exact), largest(dx - dx_exact)


@FORMATS
@BACKENDS
@PASSES
@pytest.mark.parametrize("low_parameters", [False, True], ids=["float32-module", "low-module"])
@LOW
@KINDS
def test_low_precision(kind, dtype, low_parameters, training, name, channels_last):
    case = small_case(kind)
    layer = case.build(torch.float32, training)
    if low_parameters:
        layer = layer.to(dtype)
    # A sum over the map in the input's dtype would overflow (float16) or stall (bfloat16) at this mean.
    x = laid_out((torch.randn(3, 6, 14, 15) * 4 + 300).to(dtype), channels_last)
    upstream = torch.randn_like(x)
    want, want_grads = oracle_gradients(case, x, snapshot(layer), upstream, training)
    with backend(name):
        got, got_grads = layer_gradients(layer, x, upstream)

    assert got.dtype == dtype
    assert got_grads["x"].dtype == dtype
    assert all(got_grads[key].dtype == p.dtype for key, p in layer.named_parameters())
    # One rounding of a float32 result to dtype is half an eps of the value; the float32 part (mean/std of 75,
    # 6e-8 a rounding) is below 1e-4 of the largest output.
    # Triton's interpreter cuts to bfloat16 where a GPU rounds: a whole eps.
    eps = torch.finfo(dtype).eps * (2 if name == "triton" and dtype == torch.bfloat16 else 1)
    error = (got.double() - want).abs()
    assert (error <= 0.51 * eps * want.abs() + 1e-4 * want.abs().max()).all()
    for key, expected in want_grads.items():
        tol = max(0.51 * torch.finfo(got_grads[key].dtype).eps * eps / torch.finfo(dtype).eps, 2e-3)
        assert_same_gradients({key: got_grads[key]}, {key: expected}, tol)


@BACKENDS
@KINDS
def test_float64_stays_float64(kind, name):
    layer = small_case(kind).build()
    with backend(name):
        y, grads = layer_gradients(layer, torch.randn(2, 6, 3, 3).double(), torch.randn(2, 6, 3, 3).double())
    assert y.dtype == torch.float64
    assert {g.dtype for g in grads.values()} == {torch.float64}
    assert layer.running_var.dtype == torch.float64


@BACKENDS
@PASSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32-input", "bfloat16-input"])
@KINDS
def test_autocast_does_not_enter(kind, dtype, training, name):
    """Bit for bit what the layer gives outside autocast, gradients included."""
    layer = small_case(kind).build(torch.float32, training)
    x, upstream = torch.randn(3, 6, 5, 4).to(dtype), torch.randn(3, 6, 5, 4).to(dtype)
    with backend(name):
        want, want_grads = layer_gradients(layer, x, upstream)
        leaf = x.to(DEVICE, copy=True).requires_grad_()
        layer.to(DEVICE)
        with torch.autocast(leaf.device.type, torch.bfloat16):
            got = layer(leaf)
        grads = torch.autograd.grad(got, [leaf, *layer.parameters()], upstream.to(DEVICE))
    assert got.dtype == dtype
    assert torch.equal(got.cpu(), want)
    for (key, value), grad in zip(want_grads.items(), grads, strict=True):
        assert torch.equal(grad.cpu(), value), key


@FORMATS
@BACKENDS
@pytest.mark.parametrize("spread", [False, True], ids=["one-mean", "channel-means"])
@pytest.mark.parametrize("ratio", [30, 1e2, 1e3, 1e4], ids="mean-std-{:g}".format)
@pytest.mark.parametrize("normalizers", [("bn",), ("in", "ln", "bn", "gn")], ids="-".join)
@KINDS
def test_large_mean(kind, normalizers, ratio, spread, name, channels_last):
    """Errors against float64 on the same input, measured by BatchNorm's own in the same memory layout."""
    case = Case(
        kind, 16, normalizers, groups=4, options={"reduction": 4, "hidden": 4} if kind == "en" else {}
    )
    layer = tame(case.build(torch.float32))
    means = ratio * (1 + torch.rand(1, 16, 1, 1)) * (torch.randn(1, 16, 1, 1).sign() if spread else 1)
    x = torch.randn(4, 16, 9, 8) + (means if spread else ratio)
    x, upstream = laid_out(x, channels_last), torch.randn_like(x)
    want, want_grads = oracle_gradients(case, x, snapshot(layer), upstream)
    with backend(name):
        got, got_grads = layer_gradients(layer, x, upstream)

    bn_error, bn_dx_error = batch_norm_errors(x, upstream)
    # A float32 mean is half an eps of itself off, whoever computes it. BatchNorm rounds one mean for each of
    # 16 channels, a layer those of 64 instances and what it pools of them: four such errors are allowed,
    # against hundreds where a sum cancels. γ < 1.5 scales outputs and input gradients.
    floor = torch.finfo(torch.float32).eps / 2 * x.abs().max().item()
    assert largest(got - want) <= 1.5 * 4 * max(bn_error, floor)
    assert largest(got_grads["x"] - want_grads["x"]) <= 1.5 * 4 * max(bn_dx_error, floor)
    # γ's and β's gradients sum N·S = 288 terms of the output's relative error.
    scale = largest(upstream.abs().sum((0, 2, 3)))
    for key in ("weight", "bias"):
        assert largest(got_grads[key] - want_grads[key]) <= 4 * max(bn_error, floor) * scale


@pytest.mark.parametrize("kind", ["en", "sn"])
def test_large_mean_that_float32_holds_exactly(kind):
    """Whole numbers and powers of two: the statistics have no error, so the map has to add none."""
    options = {"reduction": 4, "hidden": 4} if kind == "en" else {}
    case = Case(kind, 8, ("in", "ln", "bn", "gn"), groups=2, options=options)
    layer = tame(case.build(torch.float32))
    x = 4096.0 + torch.randint(-4, 5, (4, 8, 8, 1)) + torch.randint(0, 4, (4, 8, 1, 1))
    x = torch.cat([x, 2 * x.mean(2, keepdim=True).round() - x], 3)  # mirrored, so that means are whole
    with backend("reference"):
        got = layer(x)
    # A dozen float32 roundings of O(1) numbers; one of the mean would be 2.4e-4.
    assert largest(got - case.oracle(x, snapshot(layer))) <= 1e-5


@FORMATS
@BACKENDS
@pytest.mark.parametrize("mean", [0, 50, 1e4], ids="mean-{:g}".format)
@KINDS
def test_gradients_scale_exactly_with_the_loss(kind, mean, name, channels_last):
    """Loss scaling by a power of two: no threshold in the backward may look at the size of the gradient."""
    layer = small_case(kind).build(torch.float32)
    x, upstream = laid_out(torch.randn(3, 6, 5, 4) + mean, channels_last), torch.randn(3, 6, 5, 4)
    with backend(name):
        _, want = layer_gradients(layer, x, upstream)
        for scale in (2.0**-20, 2.0**16):
            _, got = layer_gradients(layer, x, upstream * scale)
            for key, value in want.items():
                assert torch.equal(got[key], value * scale), key


@FORMATS
@BACKENDS
@KINDS
def test_constant_channels(kind, name, channels_last):
    case = small_case(kind)
    layer = tame(case.build(torch.float32))
    x = torch.randn(3, 6, 7, 5)
    x[:, 1], x[0, 2], x[:, 3], x[2] = 3.3, -0.7, 0.0, 1.1
    x, upstream = laid_out(x, channels_last), torch.randn_like(x)
    want, want_grads = oracle_gradients(case, x, snapshot(layer), upstream)
    with backend(name):
        got, got_grads = layer_gradients(layer, x, upstream)
    # x − μ is off by one rounding of 3.3 (2.4e-7), and 1/sqrt(ε) = 316 magnifies it.
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=3e-4)
    assert_same_gradients(got_grads, want_grads, 1e-3)


@BACKENDS
@PASSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (1, 6)], ids=["1x1-map", "no-map"])
@KINDS
def test_one_value_per_channel(kind, shape, dtype, training, name):
    case = small_case(kind, dims=2 if len(shape) == 4 else 1)
    layer = tame(case.build(torch.float32, training))
    x, upstream = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    want, want_grads = oracle_gradients(case, x, snapshot(layer), upstream, training)
    with backend(name):
        got, got_grads = layer_gradients(layer, x, upstream)
    assert got.isfinite().all()
    assert all(g.isfinite().all() for g in got_grads.values())
    # float32 noise on 6 values; bfloat16 rounds the results to 4e-3, and Triton's interpreter cuts them.
    low = 8e-3 if name == "triton" else 4e-3
    tol = 1e-4 if dtype == torch.float32 else low
    torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
    assert_same_gradients(got_grads, want_grads, 1e-3 if dtype == torch.float32 else low)


@FORMATS
@BACKENDS
@KINDS
def test_outlier_in_the_first_element(kind, name, channels_last):
    """A variance shifted by the first element loses S·eps of its value here (3e-4)."""
    case = Case(kind, 4, ("in", "bn"), options={"reduction": 2, "hidden": 3} if kind == "en" else {})
    layer = tame(case.build(torch.float32))
    x = torch.randn(2, 4, 64, 65)
    x[:, :, 0, 0] = 1e6
    x = laid_out(x, channels_last)
    before = snapshot(layer)
    want, running = case.oracle(x, before).detach(), reference.update_running(x, before, 0.1)
    with backend(name):
        got = layer.to(DEVICE)(x.to(DEVICE)).detach().cpu()
    layer.cpu()
    # The outlier's output is near sqrt(S) = 64; summing 4160 float32 values in blocks keeps 1e-6 of it, and
    # BatchNorm's channels-last kernel less (it sums in one go). γ < 1.5, and twice is allowed.
    bn_error, _ = batch_norm_errors(x, torch.ones_like(x))
    assert want.abs().max() > 30
    assert largest(got - want) <= 1.5 * 2 * max(bn_error, 64 * 1e-6)
    # The variance is off by twice the output's relative error; 1e-4 is still below what a shift would lose.
    rtol = min(4 * max(bn_error / 64, 1e-6), 1e-4)
    torch.testing.assert_close(layer.running_var.double(), running["running_var"], rtol=rtol, atol=0)


@BACKENDS
def test_channels_last_statistics_of_a_large_map(name):
    layer = ExemplarNorm2d(4, ("bn",), momentum=1.0)
    x = (torch.randn(1, 4, 160, 160) + 30).to(memory_format=torch.channels_last)
    with backend(name):
        layer.to(DEVICE)(x.to(DEVICE))
    layer.cpu()
    exact = x.double()
    # 25,600 values added up in one float32 sum would leave 1e-4 in the mean and 1e-5 in the variance;
    # blocks leave a few roundings of the mean (30 · 6e-8 = 2e-6) and of the variance.
    assert largest(layer.running_mean - exact.mean((0, 2, 3))) < 1.5e-5
    assert largest(layer.running_var / exact.var((0, 2, 3)) - 1) < 2e-6
