"""Activation checkpointing: a recomputed batch is counted once, and the gradients are the same."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from exemplar_norm import backend
from tests.family.family_cases import WITH_BN, family_case
from tests.layers.layer_cases import assert_same_gradients

REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


class Block(nn.Module):
    def __init__(self, kind, momentum):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, dtype=torch.float64)
        self.norm = family_case(kind, options={"momentum": momentum}).build()
        self.last = nn.Conv2d(6, 2, 3, dtype=torch.float64)

    def forward(self, x):
        return self.last(torch.relu_(self.norm(self.first(x))))


def step(block, x, upstream, how):
    leaf = x.clone().requires_grad_()
    block.zero_grad()
    y = block(leaf) if how is None else checkpoint(block, leaf, use_reentrant=how)
    y.backward(upstream)
    return y.detach(), {"x": leaf.grad} | {name: p.grad for name, p in block.named_parameters()}


@REENTRANT
@pytest.mark.parametrize("form", ["eager", "reference"])
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
@pytest.mark.parametrize("kind", WITH_BN)
def test_averages_move_once_and_gradients_are_equal(kind, momentum, form, reentrant):
    plain = Block(kind, momentum)
    checkpointed = copy.deepcopy(plain)
    with backend(form):
        for number in range(1, 3):
            x = torch.randn(3, 3, 7, 6, dtype=torch.float64)
            upstream = torch.randn(3, 2, 3, 2, dtype=torch.float64)
            want, want_grads = step(plain, x, upstream, None)
            got, got_grads = step(checkpointed, x, upstream, reentrant)
            assert torch.equal(got, want)  # the same operations
            # reentrant runs without grad the first time: another order of rounding is allowed, no more
            assert_same_gradients(got_grads, want_grads, 1e-12)
            assert checkpointed.norm.num_batches_tracked == number
            for key, value in plain.norm.named_buffers():
                assert torch.equal(checkpointed.norm.get_buffer(key), value), key


@REENTRANT
def test_nested_in_a_checkpointed_sequence(reentrant):
    """Two layers under one checkpoint inside another: each still counts a batch once."""
    layers = nn.Sequential(*(family_case(kind).build() for kind in ("en", "ssn")))

    def inner(x):
        return checkpoint(layers, x, use_reentrant=reentrant)

    x = torch.randn(3, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    checkpoint(inner, x, use_reentrant=reentrant).sum().backward()
    assert [int(layer.num_batches_tracked) for layer in layers] == [1, 1]


def test_a_forward_inside_a_backward_hook_of_another_model_is_not_a_batch_of_training():
    """The rule in one line: while autograd runs backward, averages rest. Stated, so that a change shows."""
    layer = family_case("bn").build()
    x = torch.randn(3, 6, 4, 3, dtype=torch.float64)
    leaf = torch.ones((), requires_grad=True)
    leaf.register_hook(lambda grad: grad + 0 * layer(x).sum().float())
    before = layer.running_mean.clone()
    leaf.square().backward()
    assert torch.equal(layer.running_mean, before)
    layer(x)
    assert not torch.equal(layer.running_mean, before)
