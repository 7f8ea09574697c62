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


@pytest.mark.parametrize(
    ("key", "shape"),
    [("gate.conv.weight", (8, 8, 1)), ("weight", (64, 3)), ("gate.fc1.weight", (9, 50)), ("bias", (192,))],
    ids=["another-reduction", "transposed-weight", "transposed-gate", "flat-bias"],
)
def test_the_same_number_of_values_is_not_the_same_shape(key, shape):
    model = NORMS["en"](64)
    state = model.state_dict()
    assert state[key].numel() == torch.Size(shape).numel()
    with pytest.raises(ValueError, match="1 of another shape") as error:
        load_weights(model, state | {key: torch.ones(shape)})
    assert f"{key} (expected {tuple(state[key].shape)}, got {shape})" in str(error.value)


def test_dimensions_of_size_1_in_a_gate_are_not_dropped():
    model = NORMS["en"](8)
    state = model.state_dict()
    state["gate.fc2.bias"] = state["gate.fc2.bias"][None]
    with pytest.raises(ValueError, match=r"gate.fc2.bias \(expected \(3,\), got \(1, 3\)\)"):
        load_weights(model, state)


def test_batchnorm_checkpoint_of_another_width():
    with pytest.raises(ValueError, match=r"^0: expected BatchNorm's weight of shape \(6,\), got \(8,\)"):
        load_weights(nn.Sequential(NORMS["en"](6)), nn.Sequential(nn.BatchNorm2d(8)).state_dict())


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
