"""convert_norm's options and ranks: what is wanted already, what is built anew, what is kept."""

import copy

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, SwitchNorm2d, convert_norm, sync_norm
from exemplar_norm.batch import BatchNorm
from exemplar_norm.exemplar import ExemplarNorm
from tests.layers.layer_cases import randomise

# float64, K·γ·(1/K) and the order of sums are all that differ.
TOL = 1e-12
GROUP = object()  # stands for a process group, which nothing here asks for anything


def groups_of(norm):
    """The option without which "gn" cannot be built for 8 channels."""
    return {"groups": 4} if norm == "gn" else {}


# norm: (network of that norm, an option that its layers do not have yet)
OWN = {
    "bn": (lambda: nn.Sequential(nn.BatchNorm2d(8)), {"eps": 0.5}),
    "bn-momentum": (lambda: nn.Sequential(nn.BatchNorm1d(8)), {"momentum": None}),
    "bn-sync": (lambda: nn.Sequential(nn.SyncBatchNorm(8, process_group=GROUP)), {"eps": 0.5}),
    "bn-family": (
        lambda: nn.Sequential(BatchNorm(8, sync=True, process_group=GROUP)), {"momentum": 0.5, "eps": 0.5},
    ),
    "in": (lambda: nn.Sequential(nn.InstanceNorm2d(8, affine=True)), {"eps": 0.5}),
    "ln": (lambda: nn.Sequential(nn.GroupNorm(1, 8)), {"eps": 0.5}),
    "gn": (lambda: nn.Sequential(nn.GroupNorm(4, 8)), {"groups": 2}),
    "sn": (lambda: nn.Sequential(NORMS["sn"](8)), {"momentum": 0.5}),
    "sn-normalizers": (lambda: nn.Sequential(NORMS["sn"](8)), {"normalizers": ["in", "gn"], "groups": 5}),
    "ssn": (lambda: nn.Sequential(NORMS["ssn"](8)), {"eps": 0.5}),
    "cbn": (lambda: nn.Sequential(NORMS["cbn"](8, dims=1)), {"hidden": 5}),
    "en": (lambda: nn.Sequential(NORMS["en"](8, dims=None)), {"sync": True, "momentum": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_other_options_build_a_layer_of_its_own_kind_anew_and_once(case):
    make, options = OWN[case]
    norm = case.split("-")[0]
    model = randomise(make().double())
    model.eval()
    old, state = model[0], copy.deepcopy(model[0].state_dict())
    assert convert_norm(model, norm)[0] is old
    new = convert_norm(model, norm, **options)[0]
    assert new is not old and type(new) is type(old) and not new.training
    fitted = {"gn": {"groups": 2}, "sn-normalizers": {"normalizers": ("in", "gn"), "groups": 4}}
    for key, value in {**options, **fitted.get(case, {})}.items():
        own = {"groups": "num_groups"}.get(key, key) if norm == "gn" else key
        assert (new.fc1.out_features if key == "hidden" else getattr(new, own)) == value
    if "eps" not in options:
        assert new.eps == old.eps
    assert getattr(new, "process_group", None) is getattr(old, "process_group", None)
    for key, value in new.state_dict().items():
        assert value.dtype == state[key].dtype if key in state else True
        if key in state and value.shape == state[key].shape:
            assert torch.equal(value, state[key]), key
    before = list(model.modules())
    assert list(convert_norm(model, norm, **options).modules()) == before


@pytest.mark.parametrize("norm", NORMS)
def test_a_given_option_with_the_layers_own_value_changes_nothing(norm):
    model = nn.Sequential(NORMS[norm](8, eps=0.25, **groups_of(norm)))
    layer = model[0]
    assert convert_norm(model, norm, eps=0.25, **groups_of(norm))[0] is layer
    fresh = convert_norm(model, norm, eps=0.5, preserve=False)[0]
    assert fresh is not layer and fresh.eps == 0.5
    assert getattr(fresh, "num_groups", 4) == (1 if norm == "ln" else 4)


def test_options_of_an_exemplar_layer_that_change_its_function_are_refused():
    model = nn.Sequential(randomise(NORMS["en"](8)))
    layer = model[0]
    for option, value in {
        "eps": 0.5, "reduction": 4, "hidden": 7, "descriptor": "mean_std", "normalizers": ("bn", "in"),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=rf"0 \(ExemplarNorm2d.*expected {option}=.*preserve=False"):
            convert_norm(model, "en", **{option: value})
        assert model[0] is layer
    x = torch.randn(4, 8, 3, 3)
    want = layer.eval()(x)
    new = convert_norm(model, "en", momentum=0.7)[0]
    assert new is not layer and new.momentum == 0.7 and torch.equal(new(x), want)


@pytest.mark.parametrize("norm", NORMS)
def test_flags_of_every_parameter_are_carried(norm):
    model = nn.Sequential(NORMS[norm](8, **groups_of(norm)))
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    flags = [p.requires_grad for p in model.parameters()]
    convert_norm(model, norm, eps=0.5, preserve=False)
    assert model[0].eps == 0.5 and [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("norm", NORMS)
def test_names_and_values_of_options_are_checked_where_nothing_is_replaced(norm):
    model = nn.Sequential(NORMS[norm](8, **groups_of(norm)))
    before = list(model.modules())
    with pytest.raises(ValueError, match=rf"norm '{norm}': expected options among .*got epz"):
        convert_norm(model, norm, epz=1)
    with pytest.raises(ValueError, match="eps: expected"):
        convert_norm(model, norm, eps=-1)
    with pytest.raises(ValueError, match="options: expected no dtype"):
        convert_norm(model, norm, dtype=torch.float64)
    assert list(model.modules()) == before
    with pytest.raises(ValueError, match="eps: expected"):
        convert_norm(nn.Linear(2, 2), norm, eps=-1)


@pytest.mark.parametrize("source", [nn.BatchNorm2d(8), nn.GroupNorm(1, 8)], ids=["bn", "ln"])
def test_another_eps_does_not_keep_the_function(source):
    model = nn.Sequential(copy.deepcopy(source))
    with pytest.raises(ValueError, match=r"^0 \(.*expected eps=1e-05, got 0.001.*preserve=False"):
        convert_norm(model, "en", eps=1e-3)
    assert type(model[0]) is type(source)
    assert convert_norm(model, "en", eps=1e-3, preserve=False)[0].eps == 1e-3
    assert convert_norm(copy.deepcopy(source), "en", eps=1e-5).eps == 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_an_entry_of_norms_is_its_key(norm):
    model = nn.Sequential(nn.BatchNorm1d(8, eps=0.25), nn.Conv1d(8, 64, 1), nn.BatchNorm1d(64))
    by_key = convert_norm(copy.deepcopy(model), norm)
    by_entry = convert_norm(model, NORMS[norm])
    assert repr(by_entry) == repr(by_key) and by_entry[0].eps == 0.25
    before = list(by_entry.modules())
    assert list(convert_norm(by_entry, NORMS[norm]).modules()) == before
    assert convert_norm(nn.BatchNorm1d(8), NORMS[norm], eps=0.5, preserve=False).eps == 0.5


SYNCED = {
    "syncbatchnorm": lambda: nn.SyncBatchNorm(8, process_group=GROUP),
    "family": lambda: BatchNorm(8, sync=True, process_group=GROUP),
}


@pytest.mark.parametrize("norm", ["sn", "ssn", "cbn", "en", SwitchNorm2d], ids=str)
@pytest.mark.parametrize("source", SYNCED)
def test_ranks_of_a_synchronised_source_are_kept(source, norm):
    layer = convert_norm(SYNCED[source](), norm)
    assert layer.sync is True and layer.process_group is GROUP
    if isinstance(norm, str):
        local = convert_norm(SYNCED[source](), norm, sync=False)
        assert local.sync is False and local.process_group is None
    assert convert_norm(nn.BatchNorm2d(8), norm).sync is False
    assert not hasattr(convert_norm(SYNCED[source](), "gn"), "sync")


def test_a_callable_that_synchronises_keeps_its_own_ranks():
    layer = convert_norm(SYNCED["family"](), lambda c: SwitchNorm2d(c, sync=True))
    assert layer.sync is True and layer.process_group is None


@pytest.mark.parametrize("make", SYNCED.values(), ids=SYNCED)
def test_a_synchronised_batchnorm_is_a_bn_already(make):
    model = nn.Sequential(make())
    layer = model[0]
    assert convert_norm(model, "bn")[0] is layer
    assert convert_norm(model, "bn", eps=layer.eps)[0] is layer


def test_a_network_is_converted_after_sync_norm_on_the_cpu():
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten()).double())
    want = copy.deepcopy(model)
    sync_norm(model)
    assert type(model[1]) is BatchNorm
    layer = convert_norm(model, "en")[1]
    assert type(layer) is ExemplarNorm and layer.sync
    x = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    for training in (True, False):
        got = model.train(training)(x)
        torch.testing.assert_close(got, want.train(training)(x), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("norm", ["bn", "in"])
def test_layers_for_any_rank_are_converted_again(norm):
    layer = convert_norm(nn.GroupNorm(4, 8), norm)
    assert type(layer) is NORMS[norm].classes[None]
    assert type(convert_norm(layer, "en")) is ExemplarNorm
