"""load_weights: the layouts it understands, and what it says of those that do not fit."""

import copy
import pickle

import pytest
import torch
from torch import nn

from benchmarks.convert_matrix import NETWORKS, outputs, quiet, trained_like
from exemplar_norm import NORMS, convert_norm, load_weights
from tests.family.family_cases import FAMILY, family_case
from tests.layers.layer_cases import randomise

K = ("in", "ln", "bn")


@pytest.mark.parametrize("name", ["torchvision resnet18", "timm regnety_004"])
def test_batchnorm_checkpoint_into_a_converted_network(name):
    (network,) = [n for n in NETWORKS if str(n) == name]
    with quiet():
        original = trained_like(network)
        target = convert_norm(network.build().double(), preserve=False)
    with torch.no_grad():  # a gate that has moved must come to rest
        for p in target.parameters():
            p.add_(0.1)
    assert load_weights(target, original.state_dict()) is target
    x = network.example(2, 64, dtype=torch.float64)
    for training in (False, True):
        got, want = (outputs(model, x, training)[0] for model in (target, original))
        # float64 through a whole network: far above its rounding, far below any wrong layer
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10 * float(want.abs().max()))


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module.", "_orig_mod.", "module._orig_mod."])
def test_containers_and_prefixes_of_wrappers(wrap):
    original = randomise(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))).double().eval()
    state = original.state_dict()
    if wrap in ("state_dict", "model"):
        checkpoint = {wrap: state, "epoch": 3}
    else:
        checkpoint = {wrap + key: value for key, value in state.items()}
    target = convert_norm(copy.deepcopy(original), preserve=False)
    load_weights(target, checkpoint)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(target(x), original(x), rtol=1e-12, atol=1e-12)  # float64


@pytest.mark.parametrize("on_disk", [False, True], ids=["dict", "file"])
@pytest.mark.parametrize("kind", FAMILY)
def test_own_state_round_trip(kind, on_disk, tmp_path):
    source, target = family_case(kind).build(), family_case(kind).build()
    with torch.no_grad():
        for p in target.parameters():
            p.add_(1)
    checkpoint = {"state_dict": source.state_dict()}
    if on_disk:
        torch.save(checkpoint, tmp_path / "c.pt")
        checkpoint = tmp_path / "c.pt"
    load_weights(target, checkpoint)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_converted_network_with_activations_round_trip():
    timm = pytest.importorskip("timm")

    def model():
        return convert_norm(nn.Sequential(nn.Conv2d(3, 8, 1), timm.layers.BatchNormAct2d(8)))

    source, target = randomise(model()), model()
    load_weights(target, source.state_dict())
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def public_layout(layer, dims, ssn=False):
    """The layer's state as the public SN (SSN) code has it."""
    C = layer.num_features
    ones = (1,) * dims
    state = layer.state_dict()
    public = {
        "weight": state["weight"].reshape(1, C, *ones),
        "bias": state["bias"].reshape(1, C, *ones),
        "mean_weight": state["mean_weight"],
        "var_weight": state["var_weight"],
        "running_mean": state["running_mean"].reshape(1, C, 1),
        "running_var": state["running_var"].reshape(1, C, 1),
    }
    if ssn:
        public |= {"radius": state["radius"].reshape(1), "mean_fixed": torch.tensor([False])}
        public |= {"var_fixed": torch.tensor([True])}
    return public


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sn", "ssn"])
def test_public_switchable_normalization_layout(kind, dims, prefix):
    normalizers = ("ln", "bn") if dims == 1 else K
    source = family_case(kind, dims=dims, normalizers=normalizers).build(training=False)
    target = family_case(kind, dims=dims, normalizers=normalizers).build(training=False)
    state = {f"{prefix}0.{key}": v for key, v in public_layout(source, dims, kind == "ssn").items()}
    load_weights(nn.Sequential(target), {"state_dict": state})
    x = torch.randn(3, 6, *(4, 3, 2)[:dims], dtype=torch.float64)
    assert torch.equal(target(x), source(x))
    assert target.num_batches_tracked == 0


def test_without_running_statistics_summed_buffers_stay_out():
    source, target = (family_case("sn", normalizers=K).build() for _ in range(2))
    before = {
        k: target.state_dict()[k].clone() for k in ("running_mean", "running_var", "num_batches_tracked")
    }
    state = public_layout(source, 2)
    state["running_mean"] = state["running_mean"] * 5000
    load_weights(target, state, running_statistics=False)
    assert torch.equal(target.weight, source.weight)
    assert all(torch.equal(target.state_dict()[k], v) for k, v in before.items())
    del state["running_mean"], state["running_var"]  # nor need they be there
    load_weights(target, state, running_statistics=False)


def test_missing_unexpected_and_misshaped_names_are_listed_and_nothing_is_loaded():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), NORMS["sn"](6), nn.Linear(2, 2))
    state = randomise(copy.deepcopy(model)).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del state["2.bias"]
    state["extra.weight"] = torch.ones(2)
    state["1.mean_weight"] = torch.ones(2)
    with pytest.raises(ValueError) as error:
        load_weights(model, state)
    message = str(error.value)
    assert "1 missing: 2.bias" in message and "1 unexpected: extra.weight" in message
    assert "1.mean_weight (expected (3,), got (2,))" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_batchnorm_checkpoint_into_other_layers():
    bn = randomise(nn.BatchNorm2d(6)).state_dict()
    with pytest.raises(ValueError, match="'bn' among the normalizers"):
        load_weights(NORMS["en"](6, normalizers=("in", "ln")), bn)
    with pytest.raises(ValueError, match="missing: mean_weight, var_weight"):
        load_weights(NORMS["sn"](6), bn)


@pytest.mark.parametrize("state", [{}, {"state_dict": {}}], ids=["empty", "empty-inside"])
def test_an_empty_checkpoint_lists_what_is_missing(state):
    with pytest.raises(ValueError, match="8 missing: weight, bias, mean_weight"):
        load_weights(NORMS["ssn"](6), state)


def test_the_given_state_is_not_changed():
    state = nn.BatchNorm2d(6).state_dict()
    names, weight = list(state), state["weight"].clone()
    model = NORMS["en"](6)
    load_weights(model, state)
    with torch.no_grad():
        model.running_mean.add_(1)
    assert list(state) == names and torch.equal(state["weight"], weight)
    assert torch.equal(state["running_mean"], torch.zeros(6))


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": NORMS["sn"](6).state_dict(), "epoch": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_weights(NORMS["sn"](6), tmp_path / "evil.pt")
    assert "must not run" not in capsys.readouterr().out


def test_half_precision_checkpoint_keeps_the_dtype_of_the_network():
    source = family_case("sn").build(torch.float16)
    target = family_case("sn").build(torch.float32)
    load_weights(target, source.state_dict())
    assert target.weight.dtype == torch.float32 and torch.equal(target.weight, source.weight.float())
