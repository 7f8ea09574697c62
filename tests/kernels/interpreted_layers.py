"""The Triton kernels under Triton's interpreter: run by `test_triton_interpreter.py` in a process of its own.

Whole layers against the float64 loop oracle, so that passes and map are checked together and from outside.
With EXEMPLAR_TEST_DEVICE=cuda the same tests run on a GPU.
"""

import copy
import os

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from exemplar_norm import ExemplarNorm2d, SwitchNorm2d, backend
from exemplar_norm.kernels import triton_passes
from exemplar_norm.moments import moment_norm
from tests import reference
from tests.layers.layer_cases import (
    DEVICE,
    Case,
    assert_same_gradients,
    layer_gradients,
    oracle_gradients,
    randomise,
    small_case,
    snapshot,
)

FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def laid_out(x, channels_last):
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def check(case, layer, x, upstream, training=True, tol=2e-5):
    """Values and gradients against the oracle, to ``tol`` (float32, σ > 0.3) and five times that."""
    want, want_grads = oracle_gradients(case, x, snapshot(layer), upstream, training)
    with backend("triton"):
        got, got_grads = layer_gradients(layer, x, upstream)
    assert got.stride() == x.stride()
    torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
    assert_same_gradients(got_grads, want_grads, 5 * tol, floor=1)


MIXTURES = [("in", "ln", "bn"), ("bn",), ("gn", "in"), ("bn", "gn", "ln", "in"), ("ln",)]


@FORMATS
@pytest.mark.parametrize("normalizers", MIXTURES, ids="-".join)
@pytest.mark.parametrize("descriptor", ["mean", "mean_std"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_exemplar_norm(training, descriptor, normalizers, channels_last):
    options = {"reduction": 3, "hidden": 5, "descriptor": descriptor}
    case = Case("en", 12, normalizers, groups=3, options=options)
    layer = case.build(torch.float32, training)
    with torch.no_grad():  # out of saturation, where gradients would be all rounding
        for p in layer.gate.parameters():
            p /= 3
    # 5·7 positions are three tiles of 16, 12 channels three tiles of 4.
    x, upstream = laid_out(torch.randn(3, 12, 5, 7), channels_last), torch.randn(3, 12, 5, 7)
    check(case, layer, x, upstream, training)


@FORMATS
def test_switch_norm(channels_last):
    case = small_case("sn")
    x = laid_out(torch.randn(3, 6, 5, 7), channels_last)
    check(case, case.build(torch.float32), x, torch.randn_like(x))


@FORMATS
def test_many_positions_are_split_and_combined(channels_last):
    case = small_case("sn")
    x = laid_out(torch.randn(1, 6, 24, 25), channels_last)
    assert triton_passes._parts(x.flatten(2).to(DEVICE))[0] > 1
    check(case, case.build(torch.float32), x, torch.randn_like(x))


@pytest.mark.parametrize("shape", [(5, 6), (1, 6, 1, 1)], ids=["NC", "1x1-map"])
def test_one_position(shape):
    case = small_case("en", dims=1 if len(shape) == 2 else 2)
    check(case, case.build(torch.float32), torch.randn(shape), torch.randn(shape), tol=1e-4)


@FORMATS
@pytest.mark.parametrize("ratio", [1e2, 1e4], ids="mean-std-{:g}".format)
def test_large_mean(ratio, channels_last):
    case = Case("sn", 6, ("in", "ln", "bn"))
    x = laid_out(torch.randn(2, 6, 9, 8) + ratio, channels_last)
    # A float32 mean is half an eps of itself off, σ = 1: four such errors are allowed, γ and gradients O(3).
    check(case, randomise(case.build(torch.float32)), x, torch.randn_like(x), tol=3 * 4 * 6e-8 * ratio)


@FORMATS
def test_outlier_in_the_first_element(channels_last):
    """A variance shifted by the first element would lose S·eps of its value."""
    x = torch.randn(1, 2, 24, 25)
    x[:, :, 0, 0] = 1e6
    x = laid_out(x, channels_last)
    mean, var = (t.cpu().double() for t in triton_passes.moments(x.flatten(2).to(DEVICE)))
    torch.testing.assert_close(mean, x.double().mean((2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var, x.double().var((2, 3), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@FORMATS
def test_low_precision(channels_last, dtype):
    case = small_case("sn")
    layer = case.build(torch.float32)
    # A sum over the map in the input's dtype would overflow (float16) or stall (bfloat16) at this mean.
    x = laid_out((torch.randn(2, 6, 14, 15) * 4 + 300).to(dtype), channels_last)
    with backend("triton"):
        got, grads = layer_gradients(layer, x, torch.randn_like(x))
    want = case.oracle(x, snapshot(layer))
    assert got.dtype == grads["x"].dtype == dtype
    assert grads["weight"].dtype == torch.float32
    # The interpreter cuts where a GPU rounds: a whole eps of the value.
    torch.testing.assert_close(got.double(), want.detach(), rtol=1.02 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(momentum):
    layer = Case("en", 6, options={"reduction": 3, "hidden": 4, "momentum": momentum}).build(torch.float32)
    expected = snapshot(layer)
    layer.to(DEVICE)
    for step in range(2):
        x = torch.randn(3, 6, 4, 3)
        factor = 1 / (step + 1) if momentum is None else momentum
        expected |= reference.update_running(x, expected, factor)
        with backend("triton"):
            layer(x.to(DEVICE))
    assert layer.num_batches_tracked == 2
    for name in ("running_mean", "running_var"):
        # Two float32 steps.
        got = layer.get_buffer(name).cpu().double()
        torch.testing.assert_close(got, expected[name].double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["expanded", "transposed"])
def test_upstream_gradients_of_any_layout(layout):
    case = small_case("sn")
    x = torch.randn(3, 6, 5, 7)
    upstream = torch.randn(3, 6, 1, 1).expand(3, 6, 5, 7)
    if layout == "transposed":
        upstream = torch.randn(6, 3, 7, 5).permute(1, 0, 3, 2)
    check(case, case.build(torch.float32), x, upstream)


@FORMATS
@pytest.mark.parametrize("with_residual", [False, True], ids=["relu", "residual-relu"])
def test_fused_relu(with_residual, channels_last):
    layer = randomise(SwitchNorm2d(6)).train()
    twin = copy.deepcopy(layer)
    layer.to(DEVICE)
    x, r, upstream = (laid_out(torch.randn(3, 6, 5, 7), channels_last) for _ in range(3))
    leaves = [[t.to(device, copy=True).requires_grad_() for t in (x, r)] for device in (DEVICE, "cpu")]
    with backend("triton"):
        residual = leaves[0][1] if with_residual else None
        got = moment_norm(leaves[0][0], layer.coefficients, residual=residual, relu=True)
    with backend("reference"):
        y = twin(leaves[1][0])
        want = nn.functional.relu(y + leaves[1][1] if with_residual else y)
    torch.testing.assert_close(got.cpu(), want, rtol=2e-5, atol=2e-5)
    got.backward(upstream.to(DEVICE))
    want.backward(upstream)
    for own, other in zip([*leaves[0], *layer.parameters()], [*leaves[1], *twin.parameters()], strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad.cpu(), other.grad, rtol=1e-4, atol=1e-4)


def test_no_double_backward():
    layer = small_case("en").build(torch.float32).to(DEVICE)
    x = torch.randn(2, 6, 3, 3).to(DEVICE).requires_grad_()
    with backend("triton"), pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("with_output", [False, True], ids=["ratio-only", "ratio-and-output"])
def test_loss_on_the_ratio(with_output):
    """λ, as a hook on the gate sees it, sends its gradient back through the kernels."""
    layer = Case("en", 12, options={"reduction": 3, "hidden": 5}).build(torch.float32)
    for p in layer.gate.parameters():
        p.data /= 3  # out of saturation
    x, upstream, weights = torch.randn(3, 12, 4, 3), torch.randn(3, 12, 4, 3), torch.randn(3, 3)
    seen, found = [], {}
    layer.gate.register_forward_hook(lambda _module, _inputs, ratio: seen.append(ratio))
    for name, device in (("reference", "cpu"), ("triton", DEVICE)):
        leaf = x.to(device, copy=True).requires_grad_()
        with backend(name):
            y = layer.to(device)(leaf)
        loss = (seen[-1] * weights.to(device)).sum() + (y * upstream.to(device)).sum() * with_output
        inputs = {"x": leaf} | dict(layer.named_parameters())
        grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        found[name] = {
            key: (torch.zeros_like(value) if grad is None else grad).cpu()
            for (key, value), grad in zip(inputs.items(), grads, strict=True)
        }
    # float32, with σ > 0.3 in the denominators, through the statistics twice.
    assert_same_gradients(found["triton"], found["reference"], 1e-4, floor=1)


class Launches(TorchDispatchMode):
    """Names what a GPU would be given: Triton's kernels, and operations of PyTorch that compute something."""

    def __init__(self):
        super().__init__()
        self.names, self._interprets = [], False

    def __enter__(self):
        # Here, as only the test that is skipped on a GPU needs the interpreter.
        from triton.runtime.interpreter import GridExecutor

        self._executor, self._run = GridExecutor, GridExecutor.__call__

        def launch(executor, *args, **kwargs):
            self.names.append(executor.fn.__name__)
            self._interprets = True
            self._run(executor, *args, **kwargs)
            self._interprets = False

        GridExecutor.__call__ = launch
        return super().__enter__()

    def __exit__(self, *error):
        self._executor.__call__ = self._run
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returns = function._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not (self._interprets or is_view or "empty" in str(function) or not returns):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="counts in the interpreter")
@FORMATS
@pytest.mark.parametrize("shape", [(3, 64, 5, 7), (1, 8, 24, 25)], ids=["whole", "split"])
def test_launches_of_a_training_step(shape, channels_last):
    layer = ExemplarNorm2d(shape[1]).to(DEVICE)
    x = laid_out(torch.randn(shape), channels_last).to(DEVICE).requires_grad_()
    upstream = laid_out(torch.randn(shape), channels_last).to(DEVICE)
    combines = triton_passes._parts(x.detach().flatten(2))[0] > 1
    with backend("triton"):
        with Launches() as forward:
            y = layer(x)
        with Launches() as backward:
            torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    # Moments, the batch counter, pooled statistics, mixture, Y; then sums, two of the map, dX.
    assert len(forward.names) == 5 + combines, forward.names
    assert len(backward.names) == 4 + combines, backward.names
