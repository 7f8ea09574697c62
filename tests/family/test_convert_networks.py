"""Conversion to "en" keeps the function of real networks: the matrix of docs/conversion.md, checked."""

import copy
import logging

import pytest
import torch
from torch import nn

from benchmarks.convert_matrix import NETWORKS, errors, outputs, quiet, trained_like
from exemplar_norm import NORMS, convert_norm
from exemplar_norm.exemplar import ExemplarNorm

FAST = {
    "torchvision resnet18", "torchvision shufflenet_v2_x0_5", "torchvision mobilenet_v3_small",
    "timm regnety_004", "smp PSPNet",
}  # fmt: skip
MATRIX = [
    pytest.param(network, id=str(network), marks=() if str(network) in FAST else pytest.mark.slow)
    for network in NETWORKS
]
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LeakyReLU, nn.GELU)
# timm networks whose norm classes hold the activation.
WITH_ACTIVATION = {
    "efficientnet_b0", "mobilenetv3_large_100", "regnety_004", "densenet121", "resnetv2_50", "cspresnet50",
    "ese_vovnet19b_dw", "resnetv2_50x1_bit",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_log_line_is_enough():
    logger = logging.getLogger("exemplar_norm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("network", MATRIX)
def test_function_is_kept(network):
    """Errors are of the size of the rounding that the original network has itself, in either precision.

    A factor of 10 over it: the converted layers round at other places, and both are maxima over few outputs.
    float64 rounds 2⁻²⁹ as coarsely as float32. The floors are a few units in the last place.
    """
    with quiet():
        found = errors(network)
    for mode in ("eval", "train"):
        rounding = found[f"{mode} rounding"]
        assert rounding < 5e-3, "the network itself amplifies rounding too much to tell anything"
        assert found[f"{mode} f32"] <= 10 * rounding + 1e-6, found
        assert found[f"{mode} f64"] <= 2.0**-29 * 10 * rounding + 1e-14, found
    assert found["averages f32"] <= 10 * found["train rounding"] + 1e-6, found
    assert found["averages f64"] <= 2.0**-29 * 10 * found["train rounding"] + 1e-14, found


@pytest.mark.parametrize("network", MATRIX)
def test_every_layer_is_converted_and_activations_stay(network):
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
    with quiet():
        model = network.build().to("meta")
        norms = sum(isinstance(m, kinds) for m in model.modules())
        activations = sum(isinstance(m, ACTIVATIONS) for m in model.modules())
        inside = sum(
            isinstance(m, kinds) and type(getattr(m, "act", None)) in ACTIVATIONS for m in model.modules()
        )
        convert_norm(model, "en", **network.options)
    assert norms > 10
    assert sum(isinstance(m, ExemplarNorm) for m in model.modules()) == norms
    assert not any(isinstance(m, kinds) for m in model.modules())
    assert sum(isinstance(m, ACTIVATIONS) for m in model.modules()) == activations
    assert (inside > 5) == (network.source == "timm" and network.name in WITH_ACTIVATION)


SMALL = [n for n in NETWORKS if str(n) in ("torchvision resnet18", "timm regnety_004", "smp FPN")]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", SMALL, ids=str)
def test_any_norm_trains_in_the_place_of_another(network, norm):
    """Finite outputs, and a gradient for every parameter, in the wanted class of layer."""
    torch.manual_seed(0)
    with quiet():
        model = convert_norm(network.build(), norm, preserve=False).train()
        # InstanceNorm needs two positions in the last map.
        y = model(network.example(2, 96))
    y.square().mean().backward()
    assert y.isfinite().all()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    wanted = tuple(NORMS[norm].classes.values())
    if norm in ("ln", "gn"):
        wanted = (nn.GroupNorm,)
    assert sum(type(m) in wanted for m in model.modules()) > 10


def test_the_comparison_would_notice_a_wrong_conversion():
    """The errors above are far from those of a layer that takes the batch's statistics, or loses β."""
    network = SMALL[0]
    original = trained_like(network)
    x = network.example(2, 64, dtype=torch.float64)
    want = outputs(original, x, False)[0]
    for spoil in ("statistics", "bias"):
        broken = convert_norm(copy.deepcopy(original), "en")
        layer = broken.layer2[0].bn1
        if spoil == "statistics":
            layer.running_mean.add_(0.05 * layer.running_var.sqrt())
        else:
            layer.bias.data.zero_()
        got = outputs(broken, x, False)[0]
        assert (got - want).abs().max() > 1e-3 * want.abs().max()
