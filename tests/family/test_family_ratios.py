"""record_ratios under the wrappers people train with, and what it leaves behind: nothing."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel
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


def norm_6():
    return family_case("en").build(torch.float32)


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


WRAPPERS = {
    "data-parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "averaged-data-parallel": lambda net: AveragedModel(nn.DataParallel(net)),
    "checkpointing": lambda net: nn.Sequential(*map(checkpoint_wrapper, net)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_names_lose_every_wrapper(wrap):
    model = wrap(network()).eval()
    with record_ratios(model) as ratios:
        model(data())
    assert set(ratios) == {"1"}


class Holder(nn.Module):
    """No wrapper: a network that calls its part "module", or "_orig_mod"."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


@pytest.mark.parametrize("name", ["module", "_orig_mod"])
def test_names_of_a_network_that_sound_like_a_wrapper_stay(name):
    """Two layers must not end under one name."""
    model = Holder(n=norm_6(), **{name: Holder(n=norm_6())})
    x = torch.randn(3, 6, 4, 4)
    with record_ratios(nn.DataParallel(model)) as ratios:
        model(x)
    assert set(ratios) == {"n", f"{name}.n"}
    assert not torch.equal(ratios["n"], ratios[f"{name}.n"])
    alone = Holder(**{name: norm_6()})
    with record_ratios(alone) as ratios:
        alone(x)
    assert set(ratios) == {name}


def test_the_layer_itself_has_an_empty_name():
    with record_ratios(layer := norm_6()) as ratios:
        layer(torch.randn(3, 6, 4, 4))
    assert set(ratios) == {""}
