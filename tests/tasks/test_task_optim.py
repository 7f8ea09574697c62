"""Parameter groups, schedules and networks."""

import math
from typing import get_args

import pytest
import torch
import torchvision
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from exemplar_norm import NORMS
from tasks.base import BaseModule
from tasks.errors import UserError
from tasks.models import Norm, NormOptions, build_network
from tasks.networks import network_names
from tasks.optim import Schedule, ScheduleName, build_optimizer, build_scheduler, is_norm, parameter_groups


def test_the_norms_of_the_command_line_are_those_of_the_package():
    assert set(get_args(Norm)) == set(NORMS)
    options = {option for builder in NORMS.values() for option in builder.options} - {"process_group"}
    assert set(NormOptions.__annotations__) == options


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("name", ["digits_resnet", "shufflenet_v2_x0_5"])
def test_every_parameter_is_in_one_group_and_norms_do_not_decay(name, norm):
    model = build_network(name, 10, norm)
    groups = {group["name"]: group for group in parameter_groups(model, 0.1, {"weights": 5e-4})}
    ids = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    # The converted networks hold convolutions and one linear layer beside the normalizers.
    weights = {id(m.weight) for n, m in model.named_modules() if _is_plain(m) and not _in_norm(model, n)}
    assert {id(p) for p in groups["weights"]["params"]} == weights
    assert [type(owners[id(p)]) for p in groups["biases"]["params"]] == [nn.Linear]
    assert groups["weights"]["weight_decay"] == 5e-4
    assert all(g["weight_decay"] == 0.0 for name, g in groups.items() if name != "weights")
    mixtures = [p for n, p in model.named_parameters() if n.endswith(("mean_weight", "var_weight"))]
    if norm == "ssn":  # its mixtures learn slowly; those of SN are like other normalizer parameters
        assert {id(p) for p in groups["mixtures"]["params"]} == {id(p) for p in mixtures}
        assert groups.pop("mixtures")["lr"] == pytest.approx(0.01)
    assert all(g["lr"] == 0.1 for g in groups.values())
    decay = {"weights": 5e-4, "normalizers": 1e-4, "biases": 2e-4, "mixtures": 1.0}
    decays = {g["name"]: g["weight_decay"] for g in parameter_groups(model, 0.1, decay)}
    assert decays == {name: 0.0 if name == "mixtures" else decay[name] for name in decays}
    assert ("mixtures" in decays) == (norm == "ssn")


def _is_plain(module):
    return isinstance(module, nn.Conv2d | nn.Linear)


def _in_norm(model, name):
    parts = name.split(".")
    return any(is_norm(model.get_submodule(".".join(parts[:n]))) for n in range(1, len(parts) + 1))


def test_frozen_parameters_are_left_out_and_empty_groups_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model[1].requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, 0.1, {"weights": 0.1})] == [
        "weights",
        "biases",
    ]


def test_schedules_at_hand_computed_steps():
    cosine = Schedule("cosine", total=110, warmup=10, floor=0.1)
    assert [cosine(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [cosine(step) for step in (10, 60, 110)] == pytest.approx([1.0, 0.55, 0.1])
    step = Schedule("step", total=90, milestones=(30, 60), gamma=0.1)
    assert [step(n) for n in (0, 29, 30, 59, 60, 89)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    poly = Schedule("poly", total=100, power=0.9)
    assert [poly(n) for n in (0, 50, 99, 100)] == pytest.approx([1, 0.5**0.9, 0.01**0.9, 0])
    exponential = Schedule("exponential", total=9, epoch=3, gamma=0.5)
    assert [exponential(n) for n in (0, 2, 3, 5, 6, 8)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    constant = Schedule("constant", total=10, warmup=2)
    assert [constant(n) for n in (0, 1, 9)] == pytest.approx([0.5, 1, 1])


def learning_rates(scheduler, optimizer, steps):
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def optimizer_of(lr=0.4):
    groups = parameter_groups(nn.Linear(2, 2), lr, {})
    return build_optimizer("sgd", groups, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (Schedule("cosine", total=40), lambda o: CosineAnnealingLR(o, T_max=40)),
        (Schedule("onecycle", total=40), lambda o: OneCycleLR(o, 0.4, total_steps=40, cycle_momentum=False)),
        (
            Schedule("onecycle", total=40, warmup=10),
            lambda o: OneCycleLR(o, 0.4, total_steps=40, pct_start=0.25, cycle_momentum=False),
        ),
    ],
)
def test_schedules_agree_with_torchs_own(schedule, torchs):
    ours, theirs = optimizer_of(), optimizer_of()
    assert learning_rates(build_scheduler(ours, schedule), ours, 40) == pytest.approx(
        learning_rates(torchs(theirs), theirs, 40), abs=1e-9
    )


@pytest.mark.parametrize("name", get_args(ScheduleName))
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 5), (100, 0)])
def test_factors_are_finite_and_within_0_and_1(name, total, warmup):
    schedule = Schedule(name, total=total, warmup=warmup)
    assert all(0 <= schedule(step) <= 1 and math.isfinite(schedule(step)) for step in range(total + 2))


def test_adamw_takes_the_momentum_as_its_first_beta():
    groups = parameter_groups(nn.Linear(2, 2), 0.1, {})
    optimizer = build_optimizer("adamw", groups, momentum=0.8, nesterov=False)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "model.lr: expected a positive number, got 0.0"),
        ({"momentum": 1.0}, "model.momentum"),
        ({"momentum": 0.0, "nesterov": True}, "model.nesterov"),
        ({"weight_decay": -1.0}, "model.weight_decay"),
        ({"min_lr": 1.0}, "model.min_lr: expected a number between 0 and lr"),
        ({"warmup_epochs": -1.0}, "model.warmup_epochs"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        BaseModule(**options)


@pytest.mark.parametrize("norm", get_args(Norm))
def test_networks_run_with_every_norm(norm):
    model = build_network("digits_resnet", 10, norm)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    left = [type(m).__name__ for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(left) == (norm == "bn")


def test_bn_stays_as_it_was_built():
    torch.manual_seed(0)
    ours = build_network("resnet18", 7, "bn")
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    assert str(ours) == str(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_unknown_network_lists_close_names():
    with pytest.raises(UserError, match="resnet50"):
        build_network("resnet5o", 10)
    assert {"resnet50", "shufflenet_v2_x0_5", "digits_resnet"} <= set(network_names())
