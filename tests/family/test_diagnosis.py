"""diagnose_gates against the gate's definition in float64, and what it leaves behind: nothing."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.utils.checkpoint import checkpoint

from exemplar_norm import NORMS, backend, diagnose_gates, record_ratios, replace_ratios
from tests import reference

N, C, R, K, HIDDEN = 5, 6, 3, 3, 7
FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}
"""Sums of some dozens of float64 values, in another order."""
DOCS = Path(__file__).parents[2] / "docs" / "gate.md"


def layer_of(training=True, **options):
    """A layer whose gate says different things about different samples; float64."""
    torch.manual_seed(0)
    layer = NORMS["en"](C, reduction=R, hidden=HIDDEN, **options).double().train(training)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    nn.init.normal_(layer.gate.fc1.weight, std=0.1)  # some tanh units saturated, and some not
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    if options.get("correlations") == "standardised":
        nn.init.normal_(layer.gate.correlation_mean)
        nn.init.uniform_(layer.gate.correlation_var, 0.5, 2)
    return layer


def samples(n=N):
    generator = torch.Generator().manual_seed(1)
    scale = 0.3 + torch.rand(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    return torch.randn(n, C, 3, 2, generator=generator, dtype=torch.float64) * scale + scale


def loss_of(y):
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return (weights * y).square().sum()


def rows_by_hand(layer, x):
    """The descriptor (N, K, C or 2C) from its definition, over the positions of the input."""
    mean, var = x.mean((2, 3)), x.var((2, 3), correction=0)
    statistics = [(mean, var), (x.mean((1, 2, 3))[:, None], x.var((1, 2, 3), correction=0)[:, None])]
    of_batch = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    statistics.append(of_batch if layer.training else (layer.running_mean, layer.running_var))
    rows = []
    for mu, sigma2 in statistics:
        row = (mean - mu) / (sigma2 + layer.eps).sqrt()
        if layer.descriptor == "mean_std":
            row = torch.cat([row, ((var + layer.eps) / (sigma2 + layer.eps)).sqrt()], 1)
        rows.append(row)
    return torch.stack(rows, 1)


def by_hand(layer, x):
    """z, v, what FC₁ is given, h and λ, from loops over the formula."""
    gate, rows = layer.gate, rows_by_hand(layer, x)
    conv = gate.conv.weight.detach()
    z = torch.stack(
        [(rows[..., R * j : R * (j + 1)] * conv[j, :, 0]).sum(2) for j in range(conv.shape[0])], 2
    )
    v = torch.einsum("nkg,nqg->nkq", z, z)
    seen = v.flatten(1)
    if gate.correlations == "scale_free":
        seen = seen / (v.diagonal(dim1=1, dim2=2).sum(1) / K + 1e-6)[:, None]
    if gate.correlations == "standardised":
        mean, var = gate.correlation_mean, gate.correlation_var
        seen = (seen - mean) / (var + (1e-3 * mean) ** 2).sqrt()
    h = torch.tanh(seen @ gate.fc1.weight.T + gate.fc1.bias).detach()
    ratio = torch.softmax(h @ gate.fc2.weight.T + gate.fc2.bias, 1).detach()
    return z, v, seen.view(-1, K, K), h, ratio


def biased(t):
    return (t - t.mean(0)).square().mean(0).sqrt()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"descriptor": "mean_std"},
        {"correlations": "scale_free"},
        {"correlations": "standardised", "gate_rate": 3.0},
    ],
)
def test_values_are_those_of_the_formula(options, training):
    layer, x = layer_of(training, **options), samples()
    z, v, seen, h, ratio = by_hand(layer, x)
    with diagnose_gates(layer) as gates:
        layer(x)
    found = gates[""]
    assert (found.normalizers, found.channels, found.reduction) == (("in", "ln", "bn"), C, R)
    assert found.reduced == C // R
    torch.testing.assert_close(found.z_rms, z.square().mean((0, 2)).sqrt(), **FLOAT64)
    torch.testing.assert_close(found.v_mean, v.mean(0), **FLOAT64)
    torch.testing.assert_close(found.v_std, biased(v), **FLOAT64)
    torch.testing.assert_close(found.seen_std, biased(seen), **FLOAT64)
    torch.testing.assert_close(found.ratio_mean, ratio.mean(0), **FLOAT64)
    torch.testing.assert_close(found.ratio_std, biased(ratio), **FLOAT64)
    expected = biased(v).square().sum().sqrt() / v.mean(0).square().sum().sqrt()
    assert found.v_spread == pytest.approx(float(expected), rel=1e-9)
    # A share of N × HIDDEN units; none of them is within rounding of 0.9.
    assert ((h.abs() - 0.9).abs() > 1e-6).all()
    assert found.saturated == pytest.approx(int((h.abs() > 0.9).sum()) / h.numel(), abs=1e-6)
    assert found.gradients == {}
    assert 0 < found.saturated < 1 and found.v_spread > 0.01 and found.ratio_std.max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"descriptor": "mean_std", "gate_rate": 0.25}])
def test_gradients_are_those_of_the_oracle(options):
    layer, x = layer_of(**options), samples()
    params = {
        k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in layer.state_dict().items()
    }
    y, ratio = reference.exemplar_norm(x, params, layer.normalizers, training=True, **options)
    ratio.retain_grad()
    loss_of(y).backward()
    with diagnose_gates(layer) as gates:
        loss_of(layer(x)).backward()
    names = [name for name, _ in layer.named_parameters()]
    expected = {name: float(params[name].grad.norm()) for name in names}
    found = dict(gates[""].gradients)
    assert found.pop("ratio") == pytest.approx(ratio_gradient(layer, x), rel=1e-9)
    assert found == pytest.approx(expected, rel=1e-9)
    assert min(expected.values()) > 1e-6


def ratio_gradient(layer, x):
    """Norm of ∂loss/∂λ at the λ that the layer has, by Y = Σ_k λ_k γ_k (X − μ_k)/σ_k + Σ_k β_k."""
    *_, ratio = by_hand(layer, x)
    ratio.requires_grad_(True)
    y = layer.bias.detach().sum(0).view(1, C, 1, 1)
    for k, dims in enumerate(((2, 3), (1, 2, 3), (0, 2, 3))):
        mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        factor = ratio[:, k].view(-1, 1, 1, 1) * layer.weight.detach()[k].view(1, C, 1, 1)
        y = y + factor * (x - mean) / (var + layer.eps).sqrt()
    loss_of(y).backward()
    return float(ratio.grad.norm())


def test_the_step_is_the_same_and_nothing_stays():
    layer, x = layer_of(correlations="standardised"), samples()
    other = deepcopy(layer)
    loss_of(other(x)).backward()
    with diagnose_gates(layer):
        loss_of(layer(x)).backward()
    for (name, own), theirs in zip(layer.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)
        assert not own._backward_hooks, name
    for own, theirs in zip(layer.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(own, theirs, **FLOAT64)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    assert layer.gate.is_plain()


def test_an_error_inside_leaves_nothing_either():
    layer = layer_of()
    with pytest.raises(ZeroDivisionError), diagnose_gates(layer):
        1 / 0  # noqa: B018
    assert not layer.gate._forward_hooks and not layer.weight._backward_hooks


def test_gradients_are_of_the_last_pass_and_not_of_what_grad_holds():
    layer, x = layer_of(), samples()
    with diagnose_gates(layer) as gates:
        loss_of(layer(x)).backward()
        once = dict(gates[""].gradients)
        loss_of(layer(x)).backward()
        assert gates[""].gradients == pytest.approx(once, rel=1e-12)
        with torch.no_grad():
            layer(x)
        assert gates[""].gradients == {}


def test_frozen_parameters_have_no_entry():
    layer, x = layer_of(), samples().requires_grad_()
    layer.gate.requires_grad_(False)
    with diagnose_gates(layer) as gates:
        loss_of(layer(x)).backward()
    assert sorted(gates[""].gradients) == ["bias", "ratio", "weight"]


def test_a_batch_of_one_has_no_deviation_and_an_empty_one_no_entry():
    layer = layer_of(training=False)
    with diagnose_gates(layer) as gates, torch.no_grad():
        layer(samples(0))
        assert gates == {}
        layer(samples(1))
    assert gates[""].v_spread == 0 and not gates[""].ratio_std.any()


def test_a_descriptor_of_zeros_has_a_spread_of_0():
    # m − μ of "in" is 0.
    layer = NORMS["en"](C, normalizers=("in",), reduction=R)
    with diagnose_gates(layer) as gates:
        layer(samples().float())
    assert gates[""].v_spread == 0 and gates[""].z_rms.tolist() == [0]


@pytest.mark.parametrize("wrap", [lambda m: m, DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_names_are_the_networks_own(wrap):
    net = nn.Sequential(layer_of(), nn.ReLU(), layer_of())
    with diagnose_gates(wrap(net)) as gates:
        loss_of(net(samples())).backward()
    assert list(gates) == ["0", "2"]
    assert all(len(gate.gradients) == 8 for gate in gates.values())


def test_recomputation_gives_the_same():
    net, x = nn.Sequential(layer_of(), layer_of()), samples().requires_grad_()
    found = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        with diagnose_gates(net) as gates:
            loss_of(run(x)).backward()
        found.append({name: gate.gradients for name, gate in gates.items()})
    for name in ("0", "1"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-9)
    assert len(found[0]["0"]) == 8


def test_beside_the_other_hooks():
    layer, x = layer_of(), samples()
    uniform = torch.full((K,), 1 / K, dtype=torch.float64)
    with diagnose_gates(layer) as gates, record_ratios(layer) as ratios:
        layer(x)
        torch.testing.assert_close(gates[""].ratio_mean, ratios[""].mean(0), **FLOAT64)
        with replace_ratios(layer, "uniform"):
            layer(x)
    torch.testing.assert_close(gates[""].ratio_mean, uniform, **FLOAT64)
    # The gate's inside is as it was: only λ is another.
    assert gates[""].v_spread > 0.01


@pytest.mark.parametrize("form", ["eager", "reference", "auto"])
def test_half_precision_and_every_form(form):
    layer, x = layer_of().to(torch.bfloat16), samples().to(torch.bfloat16)
    with backend(form), diagnose_gates(layer) as gates:
        layer(x).sum().backward()
    assert gates[""].v_mean.dtype == torch.float32
    assert len(gates[""].gradients) == 8


@pytest.mark.parametrize(
    "model, told",
    [
        (nn.BatchNorm2d(3), "expected a model with exemplar layers, got one without"),
        ("resnet", "expected a Module, got 'resnet'"),
    ],
)
def test_bad_input_in_one_line(model, told):
    with pytest.raises(ValueError, match=f"^diagnose_gates: {told}$"), diagnose_gates(model):
        pass


def test_a_gate_of_ones_own_is_refused():
    layer = layer_of()
    layer.gate = nn.Identity()
    net = nn.Sequential(layer)
    told = r"^diagnose_gates: '0' expected the gate of exemplar_norm, got Identity$"
    with pytest.raises(ValueError, match=told), diagnose_gates(net):
        pass


def test_the_code_of_the_documentation_runs(capsys):
    code = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(code, str(DOCS), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20  # the layers of ResNet-18
    assert lines[0].startswith("bn1 ") and "λ" in lines[0]
