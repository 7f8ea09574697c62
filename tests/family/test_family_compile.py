"""Every layer under torch.compile: one graph, the same numbers, one recompilation for all batch sizes."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from exemplar_norm import set_sparsity
from tests.family.family_cases import WITH_BN, family_case
from tests.layers.layer_cases import assert_same_gradients, layer_gradients

# float64: the plain form against the eager one, the same formula in another order.
TOL = 1e-10


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def data(n=3):
    return torch.randn(n, 6, 4, 3, dtype=torch.float64)


def assert_same_step(compiled, layer, x, upstream, tol=TOL):
    want, want_grads = layer_gradients(layer, x, upstream)
    got, got_grads = layer_gradients(compiled, x, upstream)
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    got_grads = {name.removeprefix("_orig_mod."): g for name, g in got_grads.items()}
    assert_same_gradients(got_grads, want_grads, tol)
    own = compiled._orig_mod.state_dict()
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(own[name], value, rtol=tol, atol=tol)


def compiled_copy(layer, **options):
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(copy.deepcopy(layer), fullgraph=True, backend=counter, **options), counter


def build(kind, **options):
    # Compiling SSN takes time with the square of K: two normalizers here, four in slow tests.
    changes = {"normalizers": ("ln", "bn")} if kind == "ssn" else {}
    return family_case(kind, options=options, **changes)


CASES = [
    pytest.param(
        kind, training, momentum, id=f"{kind}-{mode}-{momentum}", marks=[] if fast else pytest.mark.slow
    )
    for kind in WITH_BN
    for training, mode in ((True, "training"), (False, "evaluation"))
    for momentum in (0.1, None)
    for fast in [training and (momentum or kind == "en")]
]


@pytest.mark.parametrize("kind, training, momentum", CASES)
def test_one_graph_forward_and_backward(kind, training, momentum):
    layer = build(kind, momentum=momentum).build(training=training)
    compiled, counter = compiled_copy(layer)
    assert_same_step(compiled, layer, data(), data())
    graphs = counter.frame_count
    assert graphs
    # The second call must reuse the graph, although the counter of batches has moved.
    assert_same_step(compiled, layer, data(), data())
    assert counter.frame_count == graphs


@pytest.mark.parametrize(
    "kind", [k if k in ("en", "ssn") else pytest.param(k, marks=pytest.mark.slow) for k in WITH_BN]
)
def test_batch_sizes_cost_one_recompilation_in_all(kind):
    layer = build(kind).build()
    compiled, counter = compiled_copy(layer)
    graphs = []
    for n in (5, 7, 2, 9):
        assert_same_step(compiled, layer, data(n), data(n))
        graphs.append(counter.frame_count)
    # The first size as a constant, then graphs for any.
    assert graphs[0] < graphs[1] == graphs[2] == graphs[3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WITH_BN)
def test_dynamic_from_the_start_compiles_once(kind):
    layer = build(kind).build()
    compiled, counter = compiled_copy(layer, dynamic=True)
    graphs = set()
    for n in (5, 7, 2):  # none equal to another size: torch takes equal sizes for the same symbol
        assert_same_step(compiled, layer, data(n), data(n))
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


@pytest.mark.slow
def test_the_radius_of_ssn_moves_without_recompilation():
    layer = family_case("ssn").build()
    compiled, counter = compiled_copy(layer)
    seen, graphs = set(), set()
    for progress in (0.0, 0.5, 0.8, 1.0):
        for model in (layer, compiled):
            set_sparsity(model, progress)
        assert_same_step(compiled, layer, data(), data())
        seen.add(int((layer.mixture()[0] > 0).sum()))
        graphs.add(counter.frame_count)
    assert len(graphs) == 1
    assert {1, 4} <= seen  # from all normalizers to one


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Inductor
def test_inductor_trains_a_network():
    norm = family_case("en").build(torch.float32)
    net = nn.Sequential(nn.Conv2d(6, 6, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1))
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True)
    for n in (5, 7):
        # float32: fused kernels sum in another order; the gate is random and steep, and amplifies it.
        assert_same_step(compiled, net, torch.randn(n, 6, 8, 10), torch.randn(n, 6, 6, 8), tol=1e-4)
