"""replace_ratios against the layer's definition in float64, and what it leaves behind: nothing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from exemplar_norm import NORMS, backend, record_ratios, replace_ratios

N, C, K = 5, 4, 3


def network():
    """Two layers whose gates say different things about different samples; float64, evaluation mode."""
    torch.manual_seed(0)
    net = nn.Sequential(*(NORMS["en"](C, reduction=2, hidden=8) for _ in range(2))).double().eval()
    for layer in net:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        nn.init.normal_(layer.gate.fc1.weight, std=0.05)  # tanh that is not saturated
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return net


def samples(n=N):
    generator = torch.Generator().manual_seed(1)
    scale = 0.3 + torch.rand(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    return torch.randn(n, C, 3, 2, generator=generator, dtype=torch.float64) * scale + scale


def by_hand(layer, x, ratio):
    """Y = Σ_k γ_k λ_k (X − μ_k) / sqrt(σ²_k + ε) + Σ_k β_k with the λ (N, K) given."""
    of_channel, of_layer = (
        (x.mean(d, True), x.var(d, correction=0, keepdim=True)) for d in ((2, 3), (1, 2, 3))
    )
    of_batch = (layer.running_mean.view(1, C, 1, 1), layer.running_var.view(1, C, 1, 1))
    y = layer.bias.sum(0).view(1, C, 1, 1)
    for k, (mean, var) in enumerate((of_channel, of_layer, of_batch)):
        factor = ratio[:, k].view(-1, 1, 1, 1) * layer.weight[k].view(1, C, 1, 1)
        y = y + factor * (x - mean) / (var + layer.eps).sqrt()
    return y


def own_ratios(net, x):
    with record_ratios(net) as ratios, torch.no_grad():
        net(x)
    return dict(ratios)


@pytest.mark.parametrize("form", ["auto", "reference", "eager"])
def test_the_output_is_that_of_shuffled_ratios(form):
    net, x = network(), samples()
    own = own_ratios(net[0], x)[""]
    with backend(form), torch.no_grad():
        before = net(x)
        with replace_ratios(net, "shuffled", seed=3), record_ratios(net) as used:
            shuffled = net(x)
        after = net(x)
    # Each row is that of another sample, and each sample's is used once.
    same = (used["0"][:, None] - own[None]).abs().sum(2) < 1e-12
    assert same.sum(0).tolist() == same.sum(1).tolist() == [1] * N
    assert not same.diagonal().any()
    # float64: sums of a few dozen values.
    expected = by_hand(net[1], by_hand(net[0], x, used["0"]), used["1"])
    torch.testing.assert_close(shuffled, expected, rtol=1e-9, atol=1e-9)
    assert (shuffled - before).abs().max() > 0.01
    assert torch.equal(before, after)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_seed_gives_one_order_and_each_pass_a_new_one():
    net, x = network(), samples(9)

    def rows(seed):
        found = []
        with replace_ratios(net, "shuffled", seed=seed), torch.no_grad():
            for _ in range(2):
                with record_ratios(net) as used:
                    net(x)
                found.append(used["0"])
        return found

    first, again, other = rows(0), rows(0), rows(1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_uniform_and_given_ratios(training):
    net, x = network().train(training), samples()
    own = own_ratios(network(), x)
    with replace_ratios(net, "uniform"), record_ratios(net) as used:
        net(x)
    assert torch.equal(used["1"], torch.full((N, K), 1 / 3, dtype=torch.float64))
    given = torch.tensor([0.5, 0.0, 0.5])
    with record_ratios(net) as used, replace_ratios(net, {"0": given}):
        net(x)
    assert torch.equal(used["0"], given.double().expand(N, K)), "recorded as used, whoever began first"
    assert used["1"].std(0).max() > 1e-3, "a layer that is not named chooses for itself"
    rows = own["0"][torch.tensor([1, 0, 3, 4, 2])]
    with replace_ratios(net.eval(), {"0": rows}), torch.no_grad():
        found = net[0](x)
    torch.testing.assert_close(found, by_hand(net[0], x, rows), rtol=1e-9, atol=1e-9)


def test_gradients_of_a_checkpointed_pass_are_those_of_a_plain_one():
    def gradients(forward):
        net, x = network(), samples()
        with replace_ratios(net, "shuffled"):
            forward(net, x).square().sum().backward()
        return [parameter.grad for parameter in net.parameters()]

    plain = gradients(lambda net, x: net(x))
    again = gradients(lambda net, x: checkpoint(net, x.requires_grad_(), use_reentrant=False))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_names_are_those_of_record_ratios_and_a_compiled_model_runs_uncompiled():
    torch._dynamo.reset()
    net, x = network(), samples()
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        before = compiled(x)
        with replace_ratios(compiled, {"1": torch.tensor([1.0, 0.0, 0.0])}):
            found = compiled(x)
        only_in = by_hand(net[1], net[0](x), torch.tensor([[1.0, 0.0, 0.0]] * N))
        torch.testing.assert_close(found, only_in, rtol=1e-9, atol=1e-9)
        assert torch.equal(compiled(x), before)
    torch._dynamo.reset()


def test_an_error_inside_leaves_nothing():
    net = network()
    with pytest.raises(RuntimeError, match="stop"), replace_ratios(net, "uniform"):
        raise RuntimeError("stop")
    assert not any(layer.gate._forward_hooks for layer in net)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("shufled", 'expected "shuffled", "uniform" or ratios by layer, got \'shufled\''),
        ({"2": torch.ones(K) / K}, "expected names among 0, 1; got '2'"),
        ({"0": torch.ones(2) / 2}, r"'0' expected ratios \(3\) or \(N, 3\), got \(2,\)"),
        ({"0": torch.ones(K)}, "expected ratios ≥ 0 that sum to 1"),
        ({"0": torch.tensor([1.5, -0.5, 0.0])}, "expected ratios ≥ 0 that sum to 1"),
        ({"0": torch.tensor([float("nan"), 0.5, 0.5])}, "expected ratios ≥ 0 that sum to 1"),
    ],
)
def test_what_cannot_be_put_in_is_refused(how, told):
    with pytest.raises(ValueError, match=told), replace_ratios(network(), how):
        raise AssertionError("not refused")


def test_what_does_not_fit_the_batch_or_the_model_is_refused():
    net = network()
    with replace_ratios(net, "shuffled"), pytest.raises(ValueError, match="got a batch of one"):
        net(samples(1))
    with (
        replace_ratios(net, {"0": torch.full((4, K), 1 / K)}),
        pytest.raises(ValueError, match="expected a batch of 4 samples, as the ratios given are, got 5"),
    ):
        net(samples())
    with (
        pytest.raises(ValueError, match="exemplar layers, got one without"),
        replace_ratios(nn.ReLU(), "uniform"),
    ):
        raise AssertionError("not refused")
    with (
        replace_ratios(net, "uniform"),
        pytest.raises(ValueError, match="got '0' replaced"),
        replace_ratios(net, "shuffled"),
    ):
        raise AssertionError("not refused")
    assert not any(layer.gate._forward_hooks for layer in net)
