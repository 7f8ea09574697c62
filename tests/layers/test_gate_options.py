"""What the gate sees, how it starts and how fast it learns: each option against the float64 loop oracle."""

import copy

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, ExemplarNorm2d, backend, calibrate, convert_norm, load_weights, record_ratios
from tests.layers.layer_cases import (
    DEVICE,
    FORMS,
    Case,
    assert_same_gradients,
    layer_gradients,
    oracle_gradients,
    snapshot,
)

# Both sides work in float64 (2e-16); folded means of "standardised" cancel against what they were added to.
VALUES = {"rtol": 1e-9, "atol": 1e-9}
PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def case_of(**options) -> Case:
    return Case("en", 6, options={"reduction": 3, "hidden": 4, **options})


@PASSES
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("descriptor", ["mean", "mean_std"])
@pytest.mark.parametrize("rate", [1.0, 0.125, 9.0])
@pytest.mark.parametrize("correlations", ["plain", "standardised", "scale_free"])
def test_values_and_gradients(correlations, rate, descriptor, form, training):
    case = case_of(correlations=correlations, gate_rate=rate, descriptor=descriptor)
    low = form == "triton"
    layer = case.build(dtype=torch.float32 if low else torch.float64, training=training)
    state = snapshot(layer)
    x, upstream = torch.randn(2, 3, 6, 2, 2, dtype=torch.float32 if low else torch.float64)
    want, want_grads = oracle_gradients(case, x, state, upstream, training)
    with backend(form):
        got, got_grads = layer_gradients(layer, x, upstream)
    # float32 on the kernels: sums of some ten products, through a gate whose gradient is steep.
    torch.testing.assert_close(got.double(), want, **({"rtol": 1e-4, "atol": 1e-4} if low else VALUES))
    assert_same_gradients(got_grads, want_grads, 1e-3 if low else 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_rate_changes_the_gradient_of_the_last_layer_alone(form):
    plain, fast = case_of().build(torch.float32), case_of(gate_rate=4.0).build(torch.float32)
    fast.load_state_dict(plain.state_dict())
    x, upstream = torch.randn(2, 3, 6, 2, 2)
    with backend(form):
        y, grads = layer_gradients(plain, x, upstream)
        same, rated = layer_gradients(fast, x, upstream)
    torch.testing.assert_close(same, y, rtol=0, atol=0)
    for name, gradient in grads.items():
        factor = 4.0 if name.startswith("gate.fc2") else 1.0
        torch.testing.assert_close(rated[name], factor * gradient, rtol=1e-6, atol=1e-7)  # float32


@pytest.mark.parametrize("form", FORMS)
def test_averages_of_the_correlations(form):
    """The first batches count alike, later ones for a tenth, as constants of the batches before."""
    layer = ExemplarNorm2d(6, reduction=3, correlations="standardised").to(DEVICE)
    batches = [torch.randn(5, 6, 3, 3) * (1 + index) + index for index in range(14)]
    mean, second = torch.zeros(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    with backend(form):
        for index, batch in enumerate(batches):
            v = correlations_of(layer, batch)
            layer(batch.to(DEVICE))
            share = max(1 / (index + 1), 0.1)
            mean = (1 - share) * mean + share * v.mean(0)
            second = (1 - share) * second + share * v.square().mean(0)
    gate = layer.gate.cpu()
    assert int(gate.correlation_batches) == 14
    # Moments in float32; the variance from second moments in float64, which cancel little here.
    torch.testing.assert_close(gate.correlation_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gate.correlation_var.double(), second - mean**2, rtol=1e-3, atol=1e-5)
    before = copy.deepcopy(gate.state_dict())
    layer.eval()(batches[0].to(DEVICE))
    assert all(torch.equal(value, before[name].to(value)) for name, value in gate.state_dict().items())


def test_calibration_leaves_the_gate_alone():
    layer = case_of(correlations="standardised").build(torch.float32, training=False)
    before = copy.deepcopy(layer.state_dict())
    calibrate(layer, torch.randn(3, 4, 6, 3, 3))
    changed = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert not layer.training and not layer.gate.training


def correlations_of(layer: ExemplarNorm2d, x: torch.Tensor) -> torch.Tensor:
    """v (N, 9) by the definition, in float64."""
    x = x.double()
    m, var = x.mean((2, 3)), x.var((2, 3), unbiased=False)
    rows = []
    for mu, sigma2 in (
        (m, var),
        (m.mean(1, keepdim=True), x.var((1, 2, 3), unbiased=False)[:, None]),
        (m.mean(0), x.var((0, 2, 3), unbiased=False)),
    ):
        rows.append((m - mu) / (sigma2 + layer.eps).sqrt())
    conv = layer.gate.conv.weight.detach().cpu().double()
    z = torch.einsum("nkgr,gr->nkg", torch.stack(rows, 1).unflatten(2, (2, 3)), conv[..., 0])
    return (z @ z.transpose(1, 2)).flatten(1)


def test_recomputation_uses_the_averages_of_the_first_forward():
    from torch.utils.checkpoint import checkpoint

    layer = Case("en", 6, options={"reduction": 3, "correlations": "standardised"}).build()
    twin = copy.deepcopy(layer)
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    gradients = []
    for module, run in ((layer, lambda t: checkpoint(layer, t, use_reentrant=False)), (twin, twin)):
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            run(leaf).pow(3).sum().backward()
        gradients.append((leaf.grad, module.gate.fc1.weight.grad, module.gate.correlation_mean))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_two_forwards_of_a_step_are_computed_again_as_they_were():
    from torch.utils.checkpoint import checkpoint

    layer = Case("en", 6, options={"reduction": 3, "correlations": "standardised"}).build()
    twin = copy.deepcopy(layer)
    views = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64)
    for module, again in ((layer, True), (twin, False)):
        for _ in range(2):
            module.zero_grad()
            losses = [
                (checkpoint(module, x, use_reentrant=False) if again else module(x)).pow(3).sum()
                for x in views
            ]
            sum(losses).backward()
            with torch.no_grad():  # a step of an optimiser
                for parameter in module.parameters():
                    parameter.sub_(0.01 * parameter.grad)
    for (name, value), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            value, other, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_averages_are_used_from_the_next_step_on():
    layer = Case("en", 6, options={"reduction": 3, "correlations": "standardised"}).build()
    mean = layer.gate.correlation_mean.clone()
    used = []
    for step in range(2):
        for _ in range(2):
            layer(torch.randn(4, 6, 3, 3, dtype=torch.float64))
            used.append(layer.gate._used.mean)
        if step == 0:
            moved = layer.gate.correlation_mean.clone()
            with torch.no_grad():
                layer.gate.fc1.weight.mul_(1.0)  # what an optimiser does, seen by its version
    assert torch.equal(used[0], mean) and torch.equal(used[1], mean)
    assert torch.equal(used[2], moved) and torch.equal(used[3], moved) and not torch.equal(moved, mean)


@pytest.mark.parametrize("compiler", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled_gradients(compiler):
    """The backward pass must not read the averages that the forward pass has moved."""
    plain = Case("en", 6, options={"reduction": 3, "correlations": "standardised"}).build()
    compiled = copy.deepcopy(plain)
    x, upstream = torch.randn(2, 5, 6, 3, 3, dtype=torch.float64)
    y, want = layer_gradients(plain, x, upstream)
    run = torch.compile(compiled, backend=compiler, fullgraph=True)
    leaf = x.clone().requires_grad_()
    got = run(leaf)
    torch.testing.assert_close(got, y, rtol=1e-9, atol=1e-9)
    got.backward(upstream)
    grads = {"x": leaf.grad} | {name: p.grad for name, p in compiled.named_parameters()}
    assert_same_gradients(grads, want, 1e-9)
    torch.testing.assert_close(compiled.gate.correlation_var, plain.gate.correlation_var)


def test_gradients_of_what_does_not_vary_do_not_drown_the_others():
    """The row of "in" is zero for all samples: divided by its deviation it would be rounding times 10⁶."""
    layer = Case("en", 32, options={"reduction": 2, "correlations": "standardised"}).build(torch.float32)
    x, upstream = torch.randn(2, 8, 32, 5, 5)
    for _ in range(3):
        layer(x)
        layer.gate._used = None
    double = copy.deepcopy(layer).double()
    want = layer_gradients(double, x.double(), upstream.double())[1]["x"]
    for form in ("reference", "eager"):
        with backend(form):
            got = layer_gradients(copy.deepcopy(layer), x, upstream)[1]["x"]
        # float32 through some hundred sums; it was 1e-2 in the plain form.
        assert (got.double() - want).abs().max() < 1e-4 * want.abs().max(), form


def test_a_gate_learns_which_samples_want_what():
    """Half of the samples are to lose their contrast, the others keep it; the spread of channel 0 tells."""
    torch.manual_seed(0)
    layer = ExemplarNorm2d(4, ("in", "bn"), reduction=2, descriptor="mean_std", correlations="standardised")
    for parameter in (layer.weight, layer.bias):
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], 0.5, momentum=0.9)
    for _ in range(300):
        keeps = torch.rand(32) < 0.5
        x = torch.randn(32, 4, 6, 6) * torch.exp(torch.randn(32, 1, 1, 1))
        x[:, 0] = torch.randn(32, 6, 6) * torch.where(keeps, 4.0, 0.5)[:, None, None]
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        by_batch = (x - mean) / (var + 1e-5).sqrt()
        wanted = torch.where(keeps[:, None, None, None], by_batch, nn.functional.instance_norm(x))
        optimizer.zero_grad()
        with record_ratios(layer) as ratios:
            (layer(x)[:, 1:] - wanted[:, 1:]).square().mean().backward()
        optimizer.step()
    share = ratios[""][:, 1]
    assert share[keeps].mean() - share[~keeps].mean() > 0.5  # 0.9 seen; λ that is the same for all has 0


@pytest.mark.slow
def test_samples_choose_on_the_positive_control():
    from benchmarks.gate_choice import run

    row = run("control", "standardised, rate 9", seed=4)
    assert row["top1"] > 0.9  # 0.99 seen
    assert row["top1"] - row["shuffled"] > 0.05  # 0.51 seen
    assert row["largest_gap"] > 0.3  # 0.61 seen


def test_the_last_layer_may_start_at_random():
    assert not ExemplarNorm2d(8).gate.fc2.weight.any()
    layer = ExemplarNorm2d(8, gate_start="random")
    # As nn.Linear: uniform within 1 / sqrt(50).
    assert 0 < layer.gate.fc2.weight.abs().max() <= 50**-0.5
    assert not layer.gate.fc2.bias.any()


@pytest.mark.parametrize(
    "channels, options, reduction",
    [
        (64, {}, 32),
        (64, {"reduced": 8}, 8),
        (64, {"reduction": 2, "reduced": 8}, 2),
        (6, {"reduced": 8}, 1),
        (48, {"reduced": 5}, 8),
    ],
)
def test_least_number_of_reduced_channels(channels, options, reduction):
    layer = ExemplarNorm2d(channels, **options)
    assert layer.reduction == reduction
    assert layer.gate.conv.weight.shape == (channels // reduction, reduction, 1)


def test_options_are_shown_and_found_by_name():
    layer = NORMS["en"](8, correlations="standardised", gate_rate=30.0, gate_start="random")
    assert "correlations=standardised, gate_start=random, gate_rate=30.0" in repr(layer)
    assert "correlations" not in repr(NORMS["en"](8))


@pytest.mark.parametrize(
    "options, told",
    [
        ({"correlations": "whitened"}, 'correlations: expected "plain" or "standardised" or "scale_free"'),
        ({"gate_start": None}, 'gate_start: expected "zero" or "random", got None'),
        ({"gate_rate": -1}, "gate_rate: expected a number that is not negative, got -1"),
        ({"gate_rate": float("nan")}, "gate_rate: expected a number"),
        ({"reduced": 0}, "reduced: expected a positive whole number, got 0"),
    ],
)
def test_what_is_wrong_is_said(options, told):
    with pytest.raises(ValueError, match=told):
        ExemplarNorm2d(8, **options)


def test_a_converted_layer_learns_its_ratio_slowly():
    """λ_bn is the scale of all C channels there: their gradients go into it as a mean, not as a sum."""
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16))
    network = convert_norm(network)
    assert [network[0].gate_rate, network[2].gate_rate] == [1 / 4, 1 / 16]
    assert convert_norm(nn.BatchNorm2d(16), gate_rate=1.0).gate_rate == 1.0
    assert convert_norm(nn.BatchNorm2d(16), preserve=False).gate_rate == 1.0
    again = convert_norm(network, descriptor="mean")
    assert again[2] is network[2]
    assert convert_norm(network, momentum=0.5)[2].gate_rate == 1 / 16
    assert convert_norm(network, gate_rate=None)[2].gate_rate == 1 / 16
    # What was not given stays so, whatever is built anew: BatchNorm's weights then make the gate slow.
    plain = convert_norm(convert_norm(nn.BatchNorm2d(16), preserve=False), momentum=0.5)
    assert plain.gate_rate == 1.0
    load_weights(plain, nn.BatchNorm2d(16).state_dict())
    assert plain.gate_rate == 1 / 16
    with pytest.raises(ValueError, match='kept only with gate_start="zero"'):
        convert_norm(nn.BatchNorm2d(16), gate_start="random")


@pytest.mark.parametrize("correlations", ["standardised", "scale_free"])
def test_conversion_is_exact_whatever_the_gate_sees(correlations):
    source = nn.BatchNorm2d(6).double()
    for value in (source.weight, source.bias, source.running_mean):
        nn.init.normal_(value)
    for training in (True, False):
        expected, x = copy.deepcopy(source).train(training), torch.randn(4, 6, 3, 3, dtype=torch.float64)
        layer = convert_norm(copy.deepcopy(expected), correlations=correlations)
        with record_ratios(layer) as ratios:
            got = layer(x)
        torch.testing.assert_close(got, expected(x), rtol=1e-12, atol=1e-12)
        assert torch.equal(ratios[""], torch.full((4, 3), 1 / 3, dtype=torch.float64))
