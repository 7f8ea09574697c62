"""State: names and shapes that checkpoints rely on, and the values a layer starts from."""

import pytest
import torch
from torch import nn

import exemplar_norm
from exemplar_norm import ExemplarNorm2d, SwitchNorm2d, backend, record_ratios

BUFFERS = {"running_mean": (64,), "running_var": (64,), "num_batches_tracked": ()}
DIMS = pytest.mark.parametrize("dims", [1, 2, 3], ids=["1d", "2d", "3d"])


def shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def gate_shapes(K: int, conv: tuple[int, ...], hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "gate.conv.weight": conv,
        "gate.fc1.weight": (hidden, K * K),
        "gate.fc1.bias": (hidden,),
        "gate.fc2.weight": (K, hidden),
        "gate.fc2.bias": (K,),
    }


@DIMS
@pytest.mark.parametrize(
    ("options", "K", "conv", "hidden"),
    [
        ({}, 3, (2, 32, 1), 50),
        ({"reduction": 8, "hidden": 7}, 3, (8, 8, 1), 7),
        ({"reduction": 48}, 3, (2, 32, 1), 50),
        ({"reduction": 100}, 3, (1, 64, 1), 50),
        ({"descriptor": "mean_std"}, 3, (4, 32, 1), 50),
        ({"normalizers": ("bn", "gn")}, 2, (2, 32, 1), 50),
    ],
    ids=["defaults", "options", "no-divisor", "above-C", "mean_std", "two"],
)
def test_names_and_shapes_of_exemplar_norm(dims, options, K, conv, hidden):
    layer = getattr(exemplar_norm, f"ExemplarNorm{dims}d")(64, **options)
    want = {"weight": (K, 64), "bias": (K, 64)} | gate_shapes(K, conv, hidden) | BUFFERS
    assert shapes(layer) == want
    assert {name for name, _ in layer.named_parameters()} == want.keys() - BUFFERS.keys()


@DIMS
def test_names_and_shapes_of_switch_norm(dims):
    layer = getattr(exemplar_norm, f"SwitchNorm{dims}d")(64)
    want = {"weight": (64,), "bias": (64,), "mean_weight": (3,), "var_weight": (3,)} | BUFFERS
    assert shapes(layer) == want
    assert {name for name, _ in layer.named_parameters()} == want.keys() - BUFFERS.keys()


@pytest.mark.parametrize("cls", [ExemplarNorm2d, SwitchNorm2d])
def test_a_checkpoint_loads_into_another_layer(cls):
    first, second = cls(64), cls(64)
    first(torch.randn(4, 64, 3, 3))
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(4, 64, 3, 3)
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("name", ["reference", "eager", "auto"])
def test_exemplar_norm_starts_as_the_equal_mixture(name):
    layer = ExemplarNorm2d(64, ("in", "ln", "bn", "gn"))
    assert (layer.weight == 1).all() and (layer.bias == 0).all()
    assert (layer.gate.fc2.weight == 0).all() and (layer.gate.fc2.bias == 0).all()
    for hidden in (layer.gate.conv.weight, layer.gate.fc1.weight):
        assert hidden.std() > 0
    assert (layer.running_mean == 0).all() and (layer.running_var == 1).all()
    model = nn.Sequential(layer)
    with backend(name), record_ratios(model) as ratios:
        model(torch.randn(4, 64, 3, 3))
    assert torch.equal(ratios["0"], torch.full((4, 4), 0.25))


def test_switch_norm_starts_as_the_equal_mixture():
    layer = SwitchNorm2d(64)
    for name, value in layer.named_parameters():
        assert (value == (0 if name == "bias" else 1)).all(), name


@pytest.mark.parametrize("cls", [ExemplarNorm2d, SwitchNorm2d])
def test_only_the_gates_hidden_part_sleeps_at_the_start(cls):
    """Zero FC₂ gives λ = 1/K; every other parameter learns from the first step."""
    layer = cls(64)
    (layer(torch.randn(4, 64, 3, 3)) * torch.randn(4, 64, 3, 3)).sum().backward()
    asleep = {name for name, p in layer.named_parameters() if p.grad.abs().max() == 0}
    assert asleep <= {"gate.conv.weight", "gate.fc1.weight", "gate.fc1.bias"}


@pytest.mark.parametrize("cls", [ExemplarNorm2d, SwitchNorm2d])
def test_dtype_and_device_arguments(cls):
    layer = cls(64, dtype=torch.float64, device="meta")
    for name, value in layer.state_dict().items():
        assert value.is_meta
        assert value.dtype == (torch.int64 if name == "num_batches_tracked" else torch.float64), name
