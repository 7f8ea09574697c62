"""Inputs without samples or without positions: as PyTorch's layers where that makes sense, else an error."""

import pytest
import torch
from torch import nn

from exemplar_norm import backend
from tests.family.family_cases import WITH_BN, family_case

BACKENDS = pytest.mark.parametrize("name", ["auto", "reference", "eager"])
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
KINDS = pytest.mark.parametrize("kind", WITH_BN)
NO_POSITIONS = pytest.mark.parametrize("shape", [(2, 6, 0, 0), (2, 6, 0, 3), (0, 6, 2, 0)], ids=str)


def assert_empty_pass(layer, x):
    """An empty output, gradients of zero (none missing: data parallelism waits for each), no state moved."""
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.sum().backward()
    assert y.shape == leaf.grad.shape == x.shape and y.dtype == x.dtype
    for key, parameter in layer.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), key
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@BACKENDS
@PASSES
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_empty_batch(dtype, kind, training, name):
    """As in BatchNorm, but for the counter, which would make the cumulative average wrong."""
    layer = family_case(kind).build(torch.float32, training)
    with backend(name):
        assert_empty_pass(layer, torch.randn(0, 6, 4, 3, dtype=dtype))


@BACKENDS
@PASSES
@pytest.mark.parametrize("kind", ["en", "sn", "ssn"])
def test_an_empty_batch_without_bn(kind, training, name):
    layer = family_case(kind, normalizers=("in", "ln", "gn")).build(torch.float32, training)
    with backend(name):
        assert_empty_pass(layer, torch.randn(0, 6, 4, 3))


@BACKENDS
def test_averages_after_an_empty_batch_follow_batchnorm(name):
    layer = family_case("en", normalizers=("bn",)).build(torch.float32)
    bn = nn.BatchNorm2d(6)
    layer.running_mean.zero_()
    layer.running_var.fill_(1)
    for n in (3, 0, 2):
        x = torch.randn(n, 6, 4, 3)
        with backend(name):
            layer(x)
        bn(x)
    # One float32 rounding or two of O(1) numbers.
    torch.testing.assert_close(layer.running_mean, bn.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var, bn.running_var, rtol=1e-5, atol=1e-6)
    assert layer.num_batches_tracked == 2


@BACKENDS
@NO_POSITIONS
@KINDS
def test_no_positions_in_training(kind, shape, name):
    """There are no statistics to take. (PyTorch's GroupNorm raises, BatchNorm and InstanceNorm go on.)"""
    layer = family_case(kind).build(torch.float32)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with backend(name), pytest.raises(ValueError) as caught:
        layer(torch.randn(shape))
    assert f"{type(layer).__name__}: expected one or more positions in training, got {shape}" == str(
        caught.value
    )
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@BACKENDS
@NO_POSITIONS
@KINDS
def test_no_positions_in_evaluation(kind, shape, name):
    layer = family_case(kind).build(torch.float32, training=False)
    with backend(name):
        assert_empty_pass(layer, torch.randn(shape))
