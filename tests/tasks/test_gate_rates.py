"""A run that fine-tunes a converted network keeps its slow gates when it is resumed, without the weights."""

import pytest
import torch
from task_paths import DIGITS

from exemplar_norm.exemplar import ExemplarNorm
from tasks.base import GATE_RATES
from tasks.classification.module import ClassificationModule

EN = ("--model.norm", "en", "--model.norm_options", "null", "--trainer.accelerator", "cpu")


@pytest.fixture
def weights(tmp_path):
    """A file of a trained digits_resnet with BatchNorm."""
    torch.manual_seed(3)
    path = tmp_path / "bn.pt"
    torch.save(
        ClassificationModule(network="digits_resnet", num_classes=10, norm="bn").network.state_dict(), path
    )
    return path


def test_a_resumed_fine_tuning_equals_an_uninterrupted_one(cli, small, tmp_path, weights):
    line = ("fit", "--config", DIGITS, "--config", small, *EN, "--model.weights", weights)
    parts = (*line, "--runs_dir", tmp_path / "parts", "--name", "a")
    # Constant: other schedules span the epochs that are asked for.
    begun = cli(*parts, "--model.schedule", "constant", "--trainer.max_epochs", "1")
    assert begun.code == 0, begun.err
    assert cli(*parts, "--model.schedule", "constant", "--resume", "auto").code == 0
    assert (
        cli(*line, "--runs_dir", tmp_path / "constant", "--name", "a", "--model.schedule", "constant").code
        == 0
    )
    states = [
        torch.load(tmp_path / folder / "classification/a/checkpoints/last.ckpt", weights_only=True)
        for folder in ("parts", "constant")
    ]
    for state in states:
        rates = state[GATE_RATES]
        assert rates["network.conv1.1"] == 1 / 8 and rates["network.layer3.1.bn2"] == 1 / 64
        assert len(rates) == 17
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    moved = states[0]["state_dict"]["network.layer3.1.bn2.gate.fc2.bias"]
    assert moved.any()


def test_a_checkpoint_without_rates_leaves_them_as_they_are():
    module = ClassificationModule(network="digits_resnet", num_classes=10, norm="en")
    layers = [layer for layer in module.modules() if isinstance(layer, ExemplarNorm)]
    module.on_load_checkpoint({})
    assert {layer.gate.rate for layer in layers} == {1.0}
    module.on_load_checkpoint({GATE_RATES: {"network.conv1.1": 0.125}})
    assert [layer.gate.rate for layer in layers].count(0.125) == 1
