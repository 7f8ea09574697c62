"""record_ratios under the wrappers people train with, and what it leaves behind: nothing."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from exemplar_norm import record_ratios
from tests.family.family_cases import FAMILY, family_case


class Counting(TorchDispatchMode):
    """Counts every operator that runs below autograd."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3), family_case("en").build(torch.float32), nn.ReLU())


def data(n=3):
    torch.manual_seed(2)
    return torch.randn(n, 3, 6, 5)


def ratio_of(model, x):
    """λ of the one exemplar layer by a hook of the test's own."""
    kept = []
    handle = model[1].gate.register_forward_hook(lambda module, inputs, ratio: kept.append(ratio.detach()))
    model(x)
    handle.remove()
    return kept[0]


def operators(model, x):
    model.zero_grad(set_to_none=True)
    with Counting() as mode:
        model(x).square().sum().backward()
    return mode.counts


def test_recording_costs_no_operator_and_leaves_nothing():
    model, x = network(), data()
    before = operators(model, x)
    with record_ratios(model) as ratios:
        during = operators(model, x)
    assert set(ratios) == {"1"}
    assert sum(before.values()) > 20
    assert operators(model, x) == before
    # detach for each layer is a view, without a kernel; nothing else is added while it records
    extra = during - before
    assert set(extra) <= {"aten.detach.default"} and not before - during
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("warm", [False, True], ids=["first-call", "already-compiled"])
def test_ratios_of_a_compiled_model(warm, compiler):
    """Hooks come after compilation: the graph that has been compiled must not hide the gates."""
    model, x = network().eval(), data()
    want = ratio_of(model, x)
    compiled = torch.compile(model, backend="aot_eager")
    if warm:
        compiled(x)
    with record_ratios(compiled) as ratios:
        compiled(x)
    assert set(ratios) == {"1"}
    # float32, the plain form against the eager one
    torch.testing.assert_close(ratios["1"], want, rtol=1e-4, atol=1e-6)
    ratios.clear()
    compiled(x)
    assert not ratios  # recording has ended


def test_a_compiled_model_stays_compiled_around_recording(compiler):
    from torch._dynamo.testing import CompileCounterWithBackend

    model, x = network().eval(), data()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    compiled(x)
    graphs = counter.frame_count
    for _ in range(3):
        with record_ratios(compiled):
            compiled(x)
        compiled(x)
    assert counter.frame_count <= graphs + 1  # at most one more graph, not one each time


@pytest.mark.parametrize("kind", [k for k in FAMILY if k != "en"])
def test_other_layers_have_no_ratios(kind):
    model = nn.Sequential(family_case(kind).build())
    with record_ratios(model) as ratios:
        model(torch.randn(2, 6, 3, 3, dtype=torch.float64))
    assert ratios == {}


def test_names_lose_every_wrapper():
    class Holder(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    model = Holder(Holder(network()))
    with record_ratios(model) as ratios:
        model(data())
    assert set(ratios) == {"1"}
