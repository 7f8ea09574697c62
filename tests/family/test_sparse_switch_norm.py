"""SparseSwitchNorm: values and gradients against the loop oracle, and the schedule over a training."""

import copy

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, SparseSwitchNorm2d, SwitchNorm2d, backend, set_sparsity
from exemplar_norm.sparsestmax import circumradius
from tests.family.family_cases import family_case
from tests.layers.layer_cases import (
    SPATIAL,
    SUBSETS,
    assert_same_gradients,
    layer_gradients,
    oracle_gradients,
    snapshot,
)

PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
# float64 against the loop oracle; the sphere's square roots cost a few digits.
TOL = 1e-9


def assert_equals_oracle(case, shape, training, form):
    layer = case.build(training=training)
    state = snapshot(layer)
    x, upstream = torch.randn(shape, dtype=torch.float64) + 0.5, torch.randn(shape, dtype=torch.float64)
    want, want_grads = oracle_gradients(case, x, state, upstream, training)
    with backend(form):
        got, got_grads = layer_gradients(layer, x, upstream)
    torch.testing.assert_close(got, want, rtol=TOL, atol=TOL)
    assert_same_gradients(got_grads, want_grads, TOL)
    return want_grads


@pytest.mark.parametrize("form", ["eager", "reference"])
@PASSES
@pytest.mark.parametrize("layout", SPATIAL)
def test_every_rank_equals_the_oracle(layout, training, form):
    spatial = SPATIAL[layout]
    case = family_case("ssn", dims=max(len(spatial), 1))
    grads = assert_equals_oracle(case, (3, 6, *spatial), training, form)
    assert grads["mean_weight"].abs().max() > 1e-3 or layout == "NC"  # the mixture is alive


@PASSES
@pytest.mark.parametrize("radius", [0.0, 0.3, 0.7, 0.9, 1.0])
def test_every_stage_of_the_schedule_equals_the_oracle(radius, training):
    assert_equals_oracle(family_case("ssn", radius=radius), (3, 6, 4, 2), training, "auto")


@pytest.mark.parametrize("normalizers", [s for s in SUBSETS if list(s) == sorted(s)], ids="+".join)
def test_subsets_of_normalizers_equal_the_oracle(normalizers):
    assert_equals_oracle(family_case("ssn", normalizers=normalizers), (2, 6, 3, 2), True, "auto")


def test_float32_against_the_oracle():
    case = family_case("ssn")
    layer = case.build(torch.float32)
    x = torch.randn(3, 6, 5, 4)
    want = case.oracle(x, layer.state_dict())
    torch.testing.assert_close(
        layer(x).double(), want, rtol=1e-4, atol=1e-5
    )  # float32 rounding of sums of 20


def test_equals_switch_norm_with_the_same_mixture():
    """At radius 0, logits that are a mixture give that mixture; SN gets it from their logarithms."""
    mixture = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    sparse, switch = SparseSwitchNorm2d(6, dtype=torch.float64), SwitchNorm2d(6, dtype=torch.float64)
    for layer, logits in ((sparse, mixture), (switch, mixture.log())):
        layer.mean_weight.data.copy_(logits)
        layer.var_weight.data.copy_(logits.flip(0))
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), switch(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_set_sparsity_sets_the_radius_of_every_layer(progress):
    model = nn.Sequential(
        NORMS["ssn"](4), nn.Sequential(NORMS["ssn"](4, normalizers=("ln", "bn"))), NORMS["sn"](4)
    )
    set_sparsity(model, progress)
    for layer, K in ((model[0], 3), (model[1][0], 2)):
        assert float(layer.radius) == pytest.approx(progress * circumradius(K), rel=1e-6)  # float32 buffer


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_its_range_is_an_error(progress):
    with pytest.raises(ValueError, match=r"progress: expected a number in \[0, 1\]"):
        set_sparsity(NORMS["ssn"](4), progress)


def training_run(steps=60, momentum=0.9, start=None, first=0, offset=0):
    """A small regression by SGD with momentum; the mixtures after each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), NORMS["ssn"](8), nn.ReLU(), nn.Conv2d(8, 1, 3)).double()
    net.append(NORMS["ssn"](1, normalizers=("in", "bn")).double())
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum)
    if start is not None:
        net.load_state_dict(start[0])
        sgd.load_state_dict(start[1])
    layers = [m for m in net.modules() if isinstance(m, SparseSwitchNorm2d)]
    history = []
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=generator)
        set_sparsity(net, (step + offset) / (steps - 1 + offset))
        before = [w.detach().clone() for layer in layers for w in layer.mixture()]
        sgd.zero_grad()
        (net(x) - x[:, :1, 2:-2, 2:-2] * 2 - 1).square().mean().backward()
        grads = [p.grad for layer in layers for p in (layer.mean_weight, layer.var_weight)]
        sgd.step()
        history.append((before, grads, [w.detach().clone() for layer in layers for w in layer.mixture()]))
        if step + 1 == steps // 2:
            middle = copy.deepcopy((net.state_dict(), sgd.state_dict()))
    return net, history, middle if first == 0 else None


def test_training_ends_one_hot_and_one_hot_stays():
    """SGD with momentum pushes on after the gradient is zero: the choice must not move for it."""
    _, history, _ = training_run()
    last = history[-1][2]
    assert all(w.max() == 1 and w.sum() == 1 for w in last)
    assert any(not (w.max() == 1) for w in history[0][2]) and any(not (w.max() == 1) for w in history[30][2])
    for index in range(len(last)):
        chosen = [w[index] for _, _, w in history]
        first = next(i for i, w in enumerate(chosen) if w.max() == 1)
        assert all(torch.equal(w, chosen[first]) for w in chosen[first:])
        for before, grads, _ in history:
            assert grads[index] is not None
            if before[index].max() == 1:
                assert torch.equal(grads[index], torch.zeros_like(grads[index]))
    assert any(g.abs().max() > 0 for _, grads, _ in history[:5] for g in grads)


def test_a_schedule_that_starts_above_zero_still_learns():
    """All logits start equal: on that tie the sphere must not hold them for ever."""
    _, history, _ = training_run(offset=1)
    assert any(g.abs().max() > 0 for g in history[0][1])
    assert len({int(w.argmax()) for w in history[-1][2]}) > 1  # not the first normalizer everywhere


def test_a_run_resumed_from_its_state_equals_the_run_in_one():
    net, _, middle = training_run()
    assert "1.radius" in middle[0] and middle[0]["1.radius"] > 0
    resumed, _, _ = training_run(start=middle, first=30)
    for key, value in net.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_parameters_end_one_hot(dtype):
    layer = NORMS["ssn"](8, dtype=dtype)
    layer.mean_weight.data.copy_(torch.tensor([0.1, 0.5, 0.2]))
    layer.set_sparsity(1.0)
    means, variances = layer.mixture()
    assert torch.equal(means, torch.tensor([0.0, 1.0, 0.0])) and variances.max() == 1
    assert layer(torch.randn(2, 8, 3, 3, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_equal_logits_choose_the_first_at_the_end(K):
    layer = NORMS["ssn"](6, normalizers=("in", "ln", "bn", "gn")[:K], groups=2)
    layer.set_sparsity(1.0)
    for mixture in layer.mixture():
        assert torch.equal(mixture, torch.eye(K)[0])
