"""convert_norm layer by layer: which sources, which targets, what is kept."""

import copy

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, ExemplarNorm1d, ExemplarNorm2d, ExemplarNorm3d, SwitchNorm2d, convert_norm
from exemplar_norm.exemplar import ExemplarNorm
from tests.layers.layer_cases import randomise

ALL = ("in", "ln", "bn", "gn")
SHAPES = {1: (4, 8, 5), 2: (4, 8, 3, 4), 3: (4, 8, 2, 3, 2)}
# float64, K·γ·(1/K) and the order of sums are all that differ.
TOL = 1e-12

# name: (source, input shape, normalizers, class that takes its place)
SOURCES = {
    "batchnorm1d": (lambda: nn.BatchNorm1d(8), SHAPES[1], ("in", "ln", "bn"), ExemplarNorm1d),
    "batchnorm1d-rank2": (lambda: nn.BatchNorm1d(8), (4, 8), ("in", "ln", "bn"), ExemplarNorm1d),
    "batchnorm2d": (lambda: nn.BatchNorm2d(8), SHAPES[2], ("in", "ln", "bn"), ExemplarNorm2d),
    "batchnorm3d": (lambda: nn.BatchNorm3d(8), SHAPES[3], ("in", "ln", "bn"), ExemplarNorm3d),
    "instancenorm1d": (lambda: nn.InstanceNorm1d(8, affine=True), SHAPES[1], ALL, ExemplarNorm1d),
    "instancenorm2d": (lambda: nn.InstanceNorm2d(8, affine=True), SHAPES[2], ("bn", "in"), ExemplarNorm2d),
    "instancenorm3d": (lambda: nn.InstanceNorm3d(8, affine=True), SHAPES[3], ALL, ExemplarNorm3d),
    "instancenorm2d-plain": (lambda: nn.InstanceNorm2d(8), SHAPES[2], ALL, ExemplarNorm2d),
    "groupnorm-as-ln": (lambda: nn.GroupNorm(1, 8), SHAPES[2], ("in", "ln", "bn"), ExemplarNorm),
    "groupnorm-as-in": (lambda: nn.GroupNorm(8, 8), SHAPES[2], ("in", "ln", "bn"), ExemplarNorm),
    "groupnorm": (lambda: nn.GroupNorm(4, 8), SHAPES[2], ALL, ExemplarNorm),
    "groupnorm-rank3": (lambda: nn.GroupNorm(2, 8), SHAPES[1], ("gn",), ExemplarNorm),
    "groupnorm-rank5": (lambda: nn.GroupNorm(2, 8, affine=False), SHAPES[3], ("gn", "bn"), ExemplarNorm),
    "batchnorm2d-no-affine": (lambda: nn.BatchNorm2d(8, affine=False), SHAPES[2], ALL, ExemplarNorm2d),
    "batchnorm2d-eps-momentum": (
        lambda: nn.BatchNorm2d(8, eps=0.3, momentum=0.7), SHAPES[2], ALL, ExemplarNorm2d,
    ),
    "batchnorm2d-cumulative": (lambda: nn.BatchNorm2d(8, momentum=None), SHAPES[2], ALL, ExemplarNorm2d),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_function_is_kept_in_training_and_evaluation(name):
    make, shape, normalizers, target = SOURCES[name]
    source = randomise(make().double())
    layer = convert_norm(copy.deepcopy(source), "en", normalizers=normalizers)
    assert type(layer) is target
    assert layer.eps == source.eps and layer.momentum == getattr(source, "momentum", 0.1)
    for training in (False, True, True, False):  # the last one with averages that two steps have moved
        x, upstream = torch.randn(shape, dtype=torch.float64) * 2 + 1, torch.randn(shape, dtype=torch.float64)
        results = []
        for model in (source, layer):
            leaf = x.clone().requires_grad_()
            y = model.train(training)(leaf)
            y.backward(upstream)
            results.append((y.detach(), leaf.grad))
        for got, want in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=TOL, atol=TOL)


def test_untracked_batchnorm_keeps_its_function_in_training():
    source = randomise(nn.BatchNorm2d(8, track_running_stats=False).double())
    layer = convert_norm(copy.deepcopy(source))
    x = torch.randn(SHAPES[2], dtype=torch.float64)
    torch.testing.assert_close(layer(x), source(x), rtol=TOL, atol=TOL)
    assert layer.num_batches_tracked == 1 and "running_var" in layer.state_dict()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=["rank3", "rank4", "rank5"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "source", [nn.GroupNorm(2, 8), nn.SyncBatchNorm(8)], ids=["groupnorm", "syncbatchnorm"]
)
def test_sources_without_a_rank_give_layers_for_any(source, norm, shape):
    layer = convert_norm(copy.deepcopy(source), norm, preserve=False)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x).mean(), torch.zeros(()), rtol=0, atol=0.05)  # it normalizes
    synced = isinstance(source, nn.SyncBatchNorm) and norm == "bn"  # is wanted, and stays
    assert type(layer) in ({nn.SyncBatchNorm} if synced else {*NORMS[norm].classes.values(), nn.GroupNorm})


@pytest.mark.parametrize("norm", NORMS)
def test_syncbatchnorm_in_evaluation(norm):
    source = randomise(nn.SyncBatchNorm(8).double()).eval()
    layer = convert_norm(copy.deepcopy(source), norm, preserve=norm in ("en", "bn", "cbn"))
    x = torch.randn(SHAPES[2], dtype=torch.float64)
    same = torch.allclose(layer(x), source(x), rtol=TOL, atol=TOL)
    assert same == (norm in ("en", "bn", "cbn"))


@pytest.mark.parametrize("source", ["batchnorm2d", "instancenorm2d", "groupnorm"])
@pytest.mark.parametrize("norm", [n for n in NORMS if n != "en"])
def test_other_norms_take_over_affine_eps_and_averages(norm, source):
    old = randomise(SOURCES[source][0]().double())
    old.eps = 0.25
    new = convert_norm(copy.deepcopy(old), norm)
    assert torch.equal(new.weight, old.weight) and torch.equal(new.bias, old.bias) and new.eps == 0.25
    if source == "batchnorm2d" and getattr(new, "running_mean", None) is not None:
        assert torch.equal(new.running_mean, old.running_mean)
        assert torch.equal(new.running_var, old.running_var)


def test_without_preserve_the_layer_is_fresh():
    old = randomise(nn.BatchNorm2d(8))
    new = convert_norm(old, "en", preserve=False)
    assert torch.equal(new.weight, torch.ones(3, 8)) and torch.equal(new.running_mean, torch.zeros(8))


@pytest.mark.parametrize(
    "channels, options, reduction, groups",
    [
        (48, {}, 24, 24),
        (48, {"reduction": 16, "groups": 5}, 16, 4),
        (7, {}, 7, 7),
        (64, {}, 32, 32),
        (34, {}, 17, 17),
    ],
)
def test_reduction_and_groups_fall_to_the_largest_divisor(channels, options, reduction, groups):
    layer = convert_norm(nn.BatchNorm2d(channels), "en", normalizers=ALL, **options)
    assert (layer.reduction, layer.groups) == (reduction, groups)
    gn = convert_norm(nn.BatchNorm2d(channels), "gn", **({"groups": options["groups"]} if options else {}))
    assert gn.num_groups == groups


def test_groups_of_the_source_are_kept():
    assert convert_norm(nn.GroupNorm(4, 32), "sn", normalizers=ALL).groups == 4
    assert convert_norm(nn.GroupNorm(4, 32), "en", normalizers=ALL).groups == 4


def test_callable_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    convert_norm(model, lambda c: SwitchNorm2d(c, ("ln", "bn")))
    assert [type(m) for m in model[1:]] == [SwitchNorm2d] * 2
    assert [m.num_features for m in model[1:]] == [8, 8]
    with pytest.raises(ValueError, match="options go with a key of NORMS"):
        convert_norm(nn.BatchNorm2d(4), SwitchNorm2d, eps=0.1)


@pytest.mark.parametrize("norm", ["en", "sn", "ssn", "cbn", "bn"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_dtype_flags(norm, dtype, device):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SyncBatchNorm(8)).to(device=device, dtype=dtype).eval()
    model[0].train()
    model[1].weight.requires_grad_(False)
    layer = convert_norm(model, norm)[1]
    for key, value in layer.state_dict().items():
        assert value.device.type == device
        assert value.dtype == (torch.long if key == "num_batches_tracked" else dtype), key
    assert model[0].training and not layer.training and not any(m.training for m in layer.modules())
    assert not layer.weight.requires_grad and layer.bias.requires_grad


def test_a_frozen_layer_stays_frozen():
    frozen = convert_norm(nn.BatchNorm2d(8).requires_grad_(False))
    assert not any(p.requires_grad for p in frozen.parameters())
    plain = convert_norm(nn.BatchNorm2d(8, affine=False))
    assert all(p.requires_grad for p in plain.parameters())


def test_every_parameter_but_the_hidden_gate_has_a_gradient_at_the_first_step():
    layer = convert_norm(randomise(nn.BatchNorm2d(64).double()), "en", normalizers=ALL)
    x = torch.randn(4, 64, 3, 3, dtype=torch.float64) * torch.rand(4, 64, 1, 1, dtype=torch.float64)
    (layer(x) * torch.randn_like(x)).sum().backward()
    dead = {name for name, p in layer.named_parameters() if not p.grad.abs().max() > 0}
    assert dead == {"gate.conv.weight", "gate.fc1.weight", "gate.fc1.bias"}
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer.zero_grad()
    (layer(x) * torch.randn_like(x)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())  # FC₂ has moved: they are awake
