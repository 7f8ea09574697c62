"""Running statistics step by step: ``nn.BatchNorm2d`` is the oracle, the loop oracle where it refuses."""

import pytest
import torch
from torch import nn

from exemplar_norm import backend
from tests import reference
from tests.layers.layer_cases import small_case

BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]
# float64 on O(1) numbers; only the order of summation differs.
EXACT = {"rtol": 1e-12, "atol": 1e-12}
BACKENDS = pytest.mark.parametrize("name", ["auto", "reference", "eager"])
KINDS = pytest.mark.parametrize("kind", ["en", "sn"])
MOMENTA = pytest.mark.parametrize("momentum", [0.1, 0.3, None], ids="momentum-{}".format)


def buffers_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in layer.named_buffers()}


def fresh(kind: str, momentum: float | None, **changes) -> nn.Module:
    """A layer with random parameters and the initial buffers of BatchNorm."""
    layer = small_case(kind, options={"momentum": momentum}, **changes).build()
    layer.running_mean.zero_()
    layer.running_var.fill_(1)
    return layer


@BACKENDS
@MOMENTA
@KINDS
def test_follows_batchnorm_step_by_step(kind, momentum, name):
    layer, bn = fresh(kind, momentum), nn.BatchNorm2d(6, momentum=momentum, dtype=torch.float64)
    assert sorted(buffers_of(layer)) == sorted(BUFFERS)
    for step, n in enumerate([4, 1, 7, 2]):
        x = torch.randn(n, 6, 3, 5, dtype=torch.float64) * (step + 1) + step
        with backend(name):
            layer(x)
        bn(x)
        for key in BUFFERS:
            torch.testing.assert_close(getattr(layer, key), getattr(bn, key), **EXACT)


@MOMENTA
def test_evaluation_uses_what_training_gathered(momentum):
    """With `bn` alone EN is BatchNorm, so the evaluation output checks that the buffers are used."""
    layer, bn = fresh("en", momentum, normalizers=("bn",)), nn.BatchNorm2d(6, momentum=momentum).double()
    bn.weight.data, bn.bias.data = layer.weight.data[0].clone(), layer.bias.data[0].clone()
    for _ in range(3):
        x = torch.randn(4, 6, 3, 3, dtype=torch.float64) * 3 + 1
        torch.testing.assert_close(layer(x), bn(x), **EXACT)
    torch.testing.assert_close(layer.eval()(x), bn.eval()(x), **EXACT)


@BACKENDS
@KINDS
def test_evaluation_leaves_the_buffers_alone(kind, name):
    layer = small_case(kind).build(training=False)
    before = buffers_of(layer)
    with backend(name):
        layer(torch.randn(3, 6, 4, 4, dtype=torch.float64, requires_grad=True)).sum().backward()
    for key, value in buffers_of(layer).items():
        assert torch.equal(value, before[key]), key


@BACKENDS
@MOMENTA
@KINDS
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (1, 6)], ids=["1x1-map", "no-map"])
def test_one_value_per_channel(shape, kind, momentum, name):
    """The mean moves and the variance stays: its estimate would be 0 (BatchNorm raises)."""
    layer = small_case(kind, options={"momentum": momentum}, dims=1 if len(shape) == 2 else 2).build()
    for _ in range(2):
        x, before = torch.randn(shape, dtype=torch.float64), buffers_of(layer)
        with backend(name):
            layer(x)
        want = reference.update_running(x, before, momentum)
        for key in BUFFERS:
            torch.testing.assert_close(getattr(layer, key), want[key], **EXACT)
        assert torch.equal(layer.running_var, before["running_var"])
        assert not torch.equal(layer.running_mean, before["running_mean"])


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_buffers(dtype, name):
    layer = small_case("en").build(torch.float32).to(dtype)
    # The update is computed in float32 and rounded once to the buffer's dtype: half an eps, relative; one is
    # allowed. The input's statistics are taken of the rounded input by both.
    eps = torch.finfo(dtype).eps
    for _ in range(3):
        x, before = torch.randn(5, 6, 3, 3).to(dtype), buffers_of(layer)
        with backend(name):
            layer(x)
        want = reference.update_running(x, before, 0.1)
        for key in BUFFERS[:2]:
            value = getattr(layer, key)
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), want[key], rtol=eps, atol=eps / 8)
        assert layer.num_batches_tracked == want["num_batches_tracked"]


@KINDS
def test_no_buffers_without_bn(kind):
    layer = small_case(kind, normalizers=("in", "gn")).build()
    assert buffers_of(layer) == {}
    assert not set(BUFFERS) & set(layer.state_dict())


@KINDS
def test_update_carries_no_graph(kind):
    layer = small_case(kind).build()
    layer(torch.randn(3, 6, 2, 2, dtype=torch.float64, requires_grad=True))
    assert not layer.running_mean.requires_grad
    assert not layer.running_var.requires_grad
