"""Layers whose output dies, and gates that choose nothing: what a run says of them, once each."""

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from exemplar_norm import NORMS
from tasks.classification.digits import DigitsDataModule
from tasks.classification.module import ClassificationModule
from tasks.ratio_monitor import RatioMonitor
from tasks.ratios.dying import Dying, OutputDeviations, in_words, scaling_layers
from tasks.ratios.layers import exemplar_layers
from tasks.ratios.survey import LayerRatios, is_static
from tasks.ratios.table import append_dying, read_dying, trim_tables

NAME = "layer1.0.bn1"


class Shrinking(ClassificationModule):
    """γ of one layer falls to a share of what it was after the first batch."""

    share = 0.004

    def __init__(self, norm):
        super().__init__(network="digits_resnet", norm=norm, lr=1e-6)
        self.first = []
        self.network.get_submodule(NAME).register_forward_hook(self.keep)

    def keep(self, _layer, _inputs, output):
        if self.training:
            self.first.append(output.detach().clone())  # what follows works in place

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 0 and self.current_epoch == 0:
            self.network.get_submodule(NAME).weight.data.mul_(self.share)


def fit(folder, model, callback=None, epochs=2):
    callback = callback or RatioMonitor(folder)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        max_epochs=epochs,
        limit_train_batches=3,
        limit_val_batches=1,
        log_every_n_steps=50,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=DigitsDataModule(image_size=16, batch_size=16))
    return callback


def deviation(y):
    """By NumPy in float64: root of the mean over channels of the variance over samples and positions."""
    return float(np.sqrt(y.double().numpy().var((0, 2, 3)).mean()))


@pytest.mark.parametrize("norm", ["en", "bn", "gn", "sn", "cbn"])
def test_a_layer_that_dies_is_named_once(tmp_path, norm):
    model = Shrinking(norm)
    with pytest.warns(
        UserWarning, match=f"epoch 1: a layer is dying: .*{NAME} from .* to .*model.lr"
    ) as told:
        callback = fit(tmp_path, model)
    assert sum("dying" in str(one.message) for one in told) == 1
    (found,) = read_dying(tmp_path)
    # The first and the third batch are read: the last of an epoch is, whatever the interval. Seven digits.
    expected = Dying(0, 2, NAME, deviation(model.first[0]), deviation(model.first[2]))
    assert found[:3] == expected[:3] and found[3:] == pytest.approx(expected[3:], rel=1e-5)
    assert found.after < 0.01 * found.before
    assert not any(hook for hook in callback._outputs._handles)
    assert {name for name, layer in scaling_layers(model).items() if layer._forward_hooks} == {NAME}


def test_a_healthy_run_says_nothing_and_a_resumed_one_keeps_the_start(tmp_path):
    model = Shrinking("en")
    model.share = 0.2
    first = fit(tmp_path, model, epochs=1)
    state = first.state_dict()
    assert read_dying(tmp_path) == [] and state["dying"] == []
    assert state["before"][NAME] == pytest.approx(deviation(model.first[0]), rel=1e-5)
    torch.testing.assert_close(state, torch.load(saved(state, tmp_path), weights_only=True))

    class Resumed(RatioMonitor):
        def on_fit_start(self, trainer, pl_module):
            self.load_state_dict(state)  # as the trainer does it, between setup and this
            super().on_fit_start(trainer, pl_module)

    model.share = 0.03  # of the fifth that is left: of the start, less than a hundredth
    with pytest.warns(UserWarning, match=f"dying: .*{NAME}"):
        again = fit(tmp_path, model, Resumed(tmp_path), epochs=1)
    assert again.state_dict() == {"before": state["before"], "dying": [NAME]}
    (found,) = read_dying(tmp_path)
    assert found.before == pytest.approx(state["before"][NAME], rel=1e-6)
    state = again.state_dict()
    fit(tmp_path, model, Resumed(tmp_path), epochs=1)  # a warning would be an error here


def saved(state, folder):
    torch.save(state, folder / "state.ckpt")
    return folder / "state.ckpt"


def test_a_compiled_network_without_mixtures_is_read_in_one_batch_of_a_validation(tmp_path):
    model, calls = ClassificationModule(network="digits_resnet", norm="bn"), []

    def backend(graph, inputs):
        def run(*args):
            calls.append(model.training)
            return graph(*args)

        return run

    model.network.conv1.compile(backend=backend)
    callback = RatioMonitor(tmp_path)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], max_epochs=1, limit_train_batches=2,
        limit_val_batches=3, num_sanity_val_steps=0, use_distributed_sampler=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=DigitsDataModule(image_size=16, batch_size=16))
    assert calls == [True, True, False, False], "the first batch of three runs uncompiled, to be read"
    assert len(callback.state_dict()["before"]) == 17


def test_the_deviation_of_an_output_does_not_see_its_mean():
    layers = {"a": NORMS["bn"](3), "b": NORMS["sn"](3)}
    for layer in layers.values():
        nn.init.constant_(layer.bias, 100.0)
    read = OutputDeviations(layers)
    read.attach()
    x = torch.randn(4, 3, 5, 5) * 3
    outputs = {name: layer(x) for name, layer in layers.items()}
    found = read.take()
    assert found == {name: pytest.approx(deviation(y.detach()), rel=1e-4) for name, y in outputs.items()}
    read.detach()
    layers["a"](x)
    assert read.take() == {}


def test_layers_without_a_scale_are_left_alone():
    net = nn.Sequential(
        nn.BatchNorm2d(3, affine=False), nn.InstanceNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3)
    )
    assert [*scaling_layers(net)] == ["3"]


def test_what_a_resume_comes_before_is_dropped(tmp_path):
    rows = [Dying(0, 2, 'a,"b"', 1.0, 0.001), Dying(1, 5, "c", 2.0, 0.002)]
    for row in rows:
        append_dying(tmp_path, [row])
    assert read_dying(tmp_path) == rows
    trim_tables(tmp_path, 5)
    assert read_dying(tmp_path) == rows[:1]


def test_many_layers_are_one_line_with_the_worst_in_front():
    told = in_words([Dying(0, 1, f"bn{n}", 1.0, 0.001 * n) for n in (5, 1, 4, 2)])
    assert (
        told.startswith("4 layers are dying")
        and "(bn1 from 1 to 0.001; bn2" in told
        and "and 1 others" in told
    )


def layer(std, kind="en", samples=10):
    values = np.array([0.5, 0.5])
    return LayerRatios(
        "x", kind, "both", ("in", "bn"), samples, values, np.array([std, std]), values, 1.0, 0.0
    )


def test_gates_that_choose_nothing_are_told_of(tmp_path, capsys):
    fit(tmp_path, ClassificationModule(network="digits_resnet", norm="en"), epochs=1)  # λ = 1/K at the start
    assert capsys.readouterr().out.count("λ is the same for all samples in each of 17 layers") == 1
    model = ClassificationModule(network="digits_resnet", norm="en")
    for layer_of_net in exemplar_layers(model).values():
        nn.init.normal_(layer_of_net.gate.fc2.weight, std=3)
    fit(tmp_path, model, epochs=1)
    assert "λ is the same" not in capsys.readouterr().out
    assert is_static([layer(0.009), layer(0.001)]) and not is_static([layer(0.009), layer(0.011)])
    assert (
        not is_static([layer(0.0, "sn", 0)]) and not is_static([layer(0.0, samples=1)]) and not is_static([])
    )
