"""calibrate: averages over batches against a direct computation, and everything else as it was."""

import copy

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, calibrate, convert_norm
from tests.family.family_cases import WITH_BN, family_case
from tests.layers.layer_cases import randomise

# float64, sums in another order.
TOL = 1e-12


def batches(count=4):
    return [torch.randn(n, 6, 4, 3, dtype=torch.float64) * n + n for n in range(2, 2 + count)]


def direct(inputs):
    """Plain averages over batches of the mean and of the unbiased variance, by definition."""
    values = [x.movedim(1, 0).flatten(1) for x in inputs]
    mean = sum(v.mean(1) for v in values) / len(values)
    return mean, sum(v.var(1, correction=1) for v in values) / len(values)


def assert_averages(layer, inputs, tol=TOL):
    mean, var = direct(inputs)
    torch.testing.assert_close(layer.running_mean, mean, rtol=tol, atol=tol)
    torch.testing.assert_close(layer.running_var, var, rtol=tol, atol=tol)
    assert layer.num_batches_tracked == len(inputs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("momentum", [0.3, None], ids=["momentum", "cumulative"])
@pytest.mark.parametrize("kind", WITH_BN)
def test_averages_of_one_layer(kind, momentum, training):
    layer = family_case(kind, options={"momentum": momentum}).build(training=training)
    parameters, inputs = [p.detach().clone() for p in layer.parameters()], batches()
    assert calibrate(layer, inputs) is layer
    assert_averages(layer, inputs)
    assert layer.momentum == momentum and layer.training == training
    assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), parameters, strict=True))
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("limit, used", [(1, 1), (3, 3), (4, 4), (9, 4), (None, 4)])
def test_limit(limit, used):
    layer, inputs, drawn = family_case("en").build(), batches(), []

    def stream():
        for x in inputs:
            drawn.append(x)
            yield x

    calibrate(layer, stream(), limit=limit)
    assert_averages(layer, inputs[:used])
    assert len(drawn) == used  # none is drawn in vain: they may cost a training batch each


@pytest.mark.parametrize(
    "wrap", [lambda x: (x, "label"), lambda x: [x, 1, 2], lambda x: x], ids=["tuple", "list", "x"]
)
def test_batches_as_a_loader_gives_them(wrap):
    layer, inputs = family_case("sn").build(), batches()
    calibrate(layer, [wrap(x) for x in inputs])
    assert_averages(layer, inputs)


class Net(nn.Module):
    """Two normalizers with dropout between, and a flag of its own."""

    def __init__(self, kind="bn"):
        super().__init__()
        self.first = randomise(NORMS[kind](6, **({"groups": 2} if kind == "gn" else {})).double())
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(6, momentum=0.4, dtype=torch.float64)
        self.seen = []

    def forward(self, x):
        x = self.drop(self.first(x))
        self.seen.append(x.detach())
        return self.second(x)


@pytest.mark.parametrize("kind", NORMS)
def test_network_runs_on_batch_statistics_without_dropout(kind):
    """The second layer sees what the first makes of each batch's own statistics."""
    net, inputs = Net(kind).train(), batches()
    net.first.eval()
    flags = [m.training for m in net.modules()]
    reference = copy.deepcopy(net.first).train()
    calibrate(net, inputs)
    assert [m.training for m in net.modules()] == flags
    for seen, x in zip(net.seen, inputs, strict=True):
        torch.testing.assert_close(seen, reference(x).detach(), rtol=TOL, atol=TOL)
    assert_averages(net.second, net.seen)
    assert net.second.momentum == 0.4
    if getattr(net.first, "running_mean", None) is not None:
        assert_averages(net.first, inputs)


def test_evaluation_after_calibration_equals_training_on_the_one_batch():
    """One batch: its unbiased variance differs from the biased one by n / (n − 1) alone."""
    net = convert_norm(randomise(nn.BatchNorm2d(6).double()))
    x = torch.randn(50, 6, 20, 20, dtype=torch.float64)
    calibrate(net, [x])
    want = net.train()(x)
    torch.testing.assert_close(net.eval()(x), want, rtol=1e-4, atol=1e-4)  # n = 20 000


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["batches", "forward"])
def test_an_exception_restores_everything(where):
    net, inputs = Net("en").train(), batches()
    state = {key: value.clone() for key, value in net.state_dict().items()}

    def stream():
        yield inputs[0]
        yield inputs[1]
        if where == "batches":
            raise Stop
        yield torch.randn(2, 5, 4, 3, dtype=torch.float64)

    with pytest.raises(Stop if where == "batches" else ValueError):
        calibrate(net, stream())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert (net.first.momentum, net.second.momentum) == (0.1, 0.4)


def test_errors_leave_the_model_alone():
    net = Net()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(net, [])
    for limit in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match=f"limit: expected a positive.*{limit}"):
            calibrate(net, batches(), limit=limit)
    for no_batches in (None, 4):
        with pytest.raises(ValueError, match=f"batches: expected an iterable of inputs, got {no_batches}"):
            calibrate(net, no_batches)
    with pytest.raises(ValueError, match="layers that keep running statistics"):
        calibrate(nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)), batches())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"image": torch.ones(2, 6, 4, 3)}, "got a dict"),
        (({"image": 1}, 2), "got a tuple that starts with a dict"),
        ([], "got a list"),
        (None, "got a NoneType"),
    ],
    ids=["dict", "dict-in-tuple", "empty", "none"],
)
@pytest.mark.parametrize("position", [0, 2])
def test_a_batch_that_holds_no_input(position, batch, says):
    net, inputs = Net("sn").train(), batches()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"^batches: expected tensors, or tuples.*, {says}$"):
        calibrate(net, [*inputs[:position], batch])
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_an_empty_batch_counts_for_nothing():
    layer, inputs = family_case("en").build(), batches()
    calibrate(layer, [inputs[0], inputs[0][:0], *inputs[1:]])
    assert_averages(layer, inputs)


def test_a_shared_layer_averages_over_its_uses():
    layer = family_case("bn").build()
    inputs = batches()
    calibrate(nn.Sequential(layer, layer), inputs)
    uses = [y for x in inputs for y in (x, copy.deepcopy(layer).train()(x).detach())]
    assert_averages(layer, uses)
