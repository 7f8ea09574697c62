"""The oracle itself, against PyTorch's layers where one normalizer alone makes EN and SN equal to them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import reference

# Same formula in float64 on O(1) numbers: only the order of summation differs.
EXACT = {"rtol": 1e-11, "atol": 1e-11}
EPS = 1e-3  # large enough that a misplaced eps shows
SHAPES = {"NC": (4, 6), "NCL": (3, 6, 5), "NCHW": (3, 6, 4, 3), "NCDHW": (2, 6, 2, 3, 2)}


def torch_layer(name: str, x: torch.Tensor, state: dict, training: bool) -> torch.Tensor:
    if name == "bn":
        running = (state["running_mean"].clone(), state["running_var"].clone())
        return F.batch_norm(x, *running, training=training, eps=EPS)
    if name == "in" and x.dim() == 2:
        return x - x  # one value per instance: x − μ = 0
    groups = {"in": x.shape[1], "ln": 1, "gn": 3}[name]
    return F.group_norm(x, groups, eps=EPS)


def state(K: int, C: int = 6, hidden: int = 5, r: int = 3, double: bool = False) -> dict[str, torch.Tensor]:
    channels = 2 * C if double else C
    shapes = {
        "weight": (K, C),
        "bias": (K, C),
        "gate.conv.weight": (channels // r, r, 1),
        "gate.fc1.weight": (hidden, K * K),
        "gate.fc1.bias": (hidden,),
        "gate.fc2.weight": (K, hidden),
        "gate.fc2.bias": (K,),
    }
    made = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    made["running_mean"] = torch.randn(C, dtype=torch.float64)
    made["running_var"] = torch.rand(C, dtype=torch.float64) + 0.5
    return made


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["in", "ln", "bn", "gn"])
def test_one_normalizer_is_pytorchs_layer(name, shape, training):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    s = state(K=1)
    weight, bias = (s[key].view(-1, *[1] * (x.dim() - 2)) for key in ("weight", "bias"))
    want = torch_layer(name, x, s, training) * weight + bias
    upstream = torch.randn_like(x)
    (want_dx,) = torch.autograd.grad(want, x, upstream, allow_unused=True, materialize_grads=True)

    en, ratio = reference.exemplar_norm(x, s, (name,), groups=3, eps=EPS, training=training)
    sn_state = s | {"weight": s["weight"][0], "bias": s["bias"][0]}
    sn_state |= {key: torch.randn(1, dtype=torch.float64) for key in ("mean_weight", "var_weight")}
    sn = reference.switch_norm(x, sn_state, (name,), groups=3, eps=EPS, training=training)

    assert torch.equal(ratio, torch.ones(shape[0], 1, dtype=torch.float64))
    for got in (en, sn):
        torch.testing.assert_close(got, want, **EXACT)
        (dx,) = torch.autograd.grad(got, x, upstream)
        torch.testing.assert_close(dx, want_dx, **EXACT)


def test_zero_last_layer_gives_the_equal_mixture():
    x = torch.randn(3, 6, 4, 3, dtype=torch.float64)
    names = ("gn", "bn", "in", "ln")
    s = state(K=4)
    s["gate.fc2.weight"].zero_()
    s["gate.fc2.bias"].zero_()
    y, ratio = reference.exemplar_norm(x, s, names, groups=3, eps=EPS)
    torch.testing.assert_close(ratio, torch.full((3, 4), 0.25, dtype=torch.float64), **EXACT)
    want = sum(
        s["weight"][k].view(-1, 1, 1) * torch_layer(name, x, s, True) / 4 + s["bias"][k].view(-1, 1, 1)
        for k, name in enumerate(names)
    )
    torch.testing.assert_close(y, want, **EXACT)


@pytest.mark.parametrize("double", [False, True], ids=["C", "2C"])
def test_gate_is_grouped_convolution_correlation_and_softmax(double):
    s = state(K=3, double=double)
    rows = torch.randn(3, 12 if double else 6, dtype=torch.float64)
    got = reference.gate([list(row) for row in rows], s)

    conv = s["gate.conv.weight"]
    z = F.conv1d(rows.T[None], conv, groups=len(conv))[0]
    hidden = torch.tanh(F.linear((z.T @ z).flatten(), s["gate.fc1.weight"], s["gate.fc1.bias"]))
    want = torch.softmax(F.linear(hidden, s["gate.fc2.weight"], s["gate.fc2.bias"]), dim=0)
    torch.testing.assert_close(torch.stack(got), want, **EXACT)


def test_descriptor_of_the_instance_normalizer(monkeypatch):
    """The published descriptor is zero for `in`; with the standard deviation appended it is one there."""
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    seen, gate = [], reference.gate
    monkeypatch.setattr(
        reference, "gate", lambda rows, *others: seen.append(torch.stack(rows[0])) or gate(rows, *others)
    )
    reference.exemplar_norm(x, state(K=1, double=True), ("in",), descriptor="mean_std")
    want = torch.cat([torch.zeros(6), torch.ones(6)]).double()
    torch.testing.assert_close(seen[0], want, **EXACT)


def test_switch_norm_mixes_means_and_variances_separately():
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    s = {
        "weight": torch.randn(6),
        "bias": torch.randn(6),
        "mean_weight": torch.tensor([50.0, 0.0]),  # the mean of `ln` alone …
        "var_weight": torch.tensor([0.0, 50.0]),  # … over the variance of `bn` alone
    }
    got = reference.switch_norm(x, s, ("ln", "bn"), eps=EPS)
    mean = x.mean((1, 2), keepdim=True)
    var = x.var((0, 2), correction=0).view(1, 6, 1)
    want = s["weight"].view(6, 1) * (x - mean) / (var + EPS).sqrt() + s["bias"].view(6, 1)
    torch.testing.assert_close(got, want, **EXACT)  # exp(−50) is below one rounding error


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_running_update_is_batchnorms(momentum):
    bn = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    buffers = {name: value.clone() for name, value in bn.named_buffers()}
    for n in (4, 1, 2):
        x = torch.randn(n, 3, 2, 5, dtype=torch.float64)
        bn(x)
        buffers = reference.update_running(x, buffers, momentum)
        for name, value in bn.named_buffers():
            torch.testing.assert_close(buffers[name], value, **EXACT)


def test_running_update_with_one_value_per_channel():
    buffers = {
        "running_mean": torch.zeros(3),
        "running_var": torch.full((3,), 2.0),
        "num_batches_tracked": torch.tensor(0),
    }
    after = reference.update_running(torch.ones(1, 3, 1, 1), buffers, 0.25)
    assert after["running_mean"].tolist() == [0.25] * 3
    assert after["running_var"].tolist() == [2.0] * 3
    assert after["num_batches_tracked"] == 1
