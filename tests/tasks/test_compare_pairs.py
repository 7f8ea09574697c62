"""At a seed, all normalizers start from the same weights and draw the same random numbers."""

import pytest
import torch
from torch import nn

from tasks.classification.module import ClassificationModule
from tasks.noisy_labels.module import NoisyLabelsModule
from tasks.segmentation.networks import build_segmenter

NORMS = ("bn", "in", "ln", "gn", "sn", "ssn", "cbn", "en")


def classifier(norm):
    return ClassificationModule(network="digits_resnet", num_classes=10, norm=norm)


def two_classifiers(norm):
    return NoisyLabelsModule(
        network="digits_resnet", num_classes=10, norm=norm, method="co_teaching", loss_options={}
    )


def segmenter(norm):
    return build_segmenter("digits_unet", "resnet18", 11, norm)


def start_of(build, norm):
    """Weights of the convolutions and of the head, and the numbers that are drawn next."""
    torch.manual_seed(3)
    network = build(norm)
    weights = {
        name: module.weight.detach().clone()
        for name, module in network.named_modules()
        if type(module) is nn.Conv2d or name.endswith((".fc", ".head"))
    }
    return weights, torch.rand(4)


@pytest.mark.parametrize("build", [classifier, two_classifiers, segmenter])
def test_normalizers_start_alike(build):
    weights, numbers = start_of(build, "bn")
    assert len(weights) > 10
    for norm in NORMS[1:]:
        others, drawn = start_of(build, norm)
        assert others.keys() == weights.keys(), norm
        assert all(torch.equal(others[name], weights[name]) for name in weights), norm
        assert torch.equal(drawn, numbers), norm


def test_seeds_start_otherwise():
    # The check above could not fail if the seed were of no effect.
    torch.manual_seed(4)
    other = classifier("bn").network.conv1[0].weight
    weights, _ = start_of(classifier, "bn")
    assert not torch.equal(other, weights["network.conv1.0"])


def test_gates_differ_between_layers():
    # The generator is put back behind the conversion, not within it.
    torch.manual_seed(3)
    gates = [m.weight for n, m in classifier("en").named_modules() if n.endswith("gate.fc1")]
    assert len(gates) > 5 and not torch.equal(gates[0], gates[1])
