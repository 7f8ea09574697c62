"""ratios.csv of real fits: against plain loops, after a resume, compiled, checkpointed, logged."""

import csv

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch.utils.checkpoint import checkpoint

from exemplar_norm import record_ratios
from tasks.classification.digits import DigitsDataModule
from tasks.classification.module import ClassificationModule
from tasks.ratio_monitor import RatioMonitor
from tasks.ratios.layers import exemplar_layers
from tasks.ratios.survey import static_ratios
from tasks.ratios.table import COLUMNS, Epoch, append_ratios, read_ratios, trim_tables

LAYERS = 17


class Kept(DummyLogger):
    """A logger that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((dict(metrics), step))


def fit(folder, norm="en", model=None, epochs=1, loggers=False, **options):
    trainer = Trainer(
        accelerator="cpu",
        logger=loggers,
        callbacks=[RatioMonitor(folder)],
        max_epochs=epochs,
        limit_train_batches=3,
        log_every_n_steps=2,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    model = model or ClassificationModule(network="digits_resnet", norm=norm)
    if norm == "en":
        torch.manual_seed(0)
        for layer in exemplar_layers(model).values():
            torch.nn.init.normal_(layer.gate.fc2.weight)
    data = DigitsDataModule(image_size=16, batch_size=32)
    trainer.fit(model, datamodule=data)
    return model, data


def by_loop(model, data):
    """λ (N, K) of each layer over the validation split, and the labels (N)."""
    rows, labels = {}, []
    model.eval()
    for images, of_batch, _ in data.val_dataloader():
        with record_ratios(model.network) as ratios, torch.no_grad():
            model(images)
        for name, ratio in ratios.items():
            rows.setdefault(name, []).append(ratio.double())
        labels += of_batch.tolist()
    return {name: torch.cat(parts) for name, parts in rows.items()}, np.array(labels)


def test_a_fit_writes_what_a_loop_over_the_samples_finds(tmp_path):
    logger = Kept()
    model, data = fit(tmp_path, loggers=[logger, CSVLogger(tmp_path, name="csv", version="")])
    rows, labels = by_loop(model, data)
    val, train = read_ratios(tmp_path)
    assert (val.epoch, val.step, val.split, train.split) == (0, 2, "val", "train")
    assert len(val.layers) == len(train.layers) == len(rows) == LAYERS
    assert {layer.samples for layer in train.layers} == {2 * 32}, "the first and the third batch"
    for layer in val.layers:
        ratio = rows[layer.layer]
        assert layer.samples == len(labels) == 270
        # The file has seven digits; λ is float32.
        assert layer.mean == pytest.approx(ratio.mean(0).numpy(), rel=2e-6)
        assert layer.std == pytest.approx(ratio.std(0, correction=0).numpy(), rel=1e-4, abs=1e-7)
    with (tmp_path / "ratios_by_class.csv").open() as file:
        table = {(r["layer"], r["normalizer"], r["class"]): float(r["mean"]) for r in csv.DictReader(file)}
    assert len(table) == LAYERS * 3 * 10
    for name, ratio in rows.items():
        of_class = ratio[torch.from_numpy(labels == 7)].mean(0).tolist()
        assert [table[name, key, "7"] for key in ("in", "ln", "bn")] == pytest.approx(of_class, rel=2e-6)
    # One scalar a layer and normalizer, and none of them a column of a CSV logger.
    own = [(metrics, step) for metrics, step in logger.logged if any("ratios/" in name for name in metrics)]
    assert len(own) == 1 and len(own[0][0]) == LAYERS * 3
    assert [own[0][1]] == [step for metrics, step in logger.logged if "val/top1" in metrics] == [2]
    assert own[0][0]["ratios/bn1/ln"] == pytest.approx(rows["bn1"].mean(0)[1].item(), rel=2e-6)
    assert "ratios/" not in (tmp_path / "csv" / "metrics.csv").read_text()
    assert not any(layer.gate._forward_hooks for layer in exemplar_layers(model).values())


def test_switchable_layers_are_read_off_their_weights(tmp_path):
    model, _ = fit(tmp_path, "sn")
    (only,) = read_ratios(tmp_path)
    expected = static_ratios(model)
    assert only.split == "val" and len(only.layers) == 2 * LAYERS
    for found, layer in zip(only.layers, expected, strict=True):
        assert (found.layer, found.mixture, found.kind) == (layer.layer, layer.mixture, "sn")
        assert found.mean == pytest.approx(layer.mean, rel=1e-6)  # seven digits


def test_a_network_without_such_layers_gets_no_file(tmp_path):
    fit(tmp_path, "bn")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_network_is_followed_in_validation_alone(tmp_path):
    model = ClassificationModule(network="digits_resnet", norm="en")
    calls = []

    def backend(graph, inputs):
        def run(*args):
            calls.append(model.training)
            return graph(*args)

        return run

    model.network.conv1.compile(backend=backend)  # two of the layers; the whole takes long to trace
    fit(tmp_path, model=model, num_sanity_val_steps=0)
    (only,) = read_ratios(tmp_path)
    assert only.split == "val" and {layer.samples for layer in only.layers} == {270}
    assert calls == [True] * 3, "training ran compiled, validation did not"
    model.train()(torch.randn(32, 3, 16, 16))
    assert calls == [True] * 4, "and compiled code runs again afterwards"


def test_checkpointed_activations_are_counted_once(tmp_path):
    class Checkpointed(ClassificationModule):
        def forward(self, images):
            if not self.training:
                return super().forward(images)
            return checkpoint(super().forward, images.requires_grad_(), use_reentrant=False)

    fit(tmp_path, model=Checkpointed(network="digits_resnet", norm="en"))
    train = read_ratios(tmp_path)[1]
    assert {layer.samples for layer in train.layers} == {2 * 32}


def test_two_networks_have_their_own_rows(tmp_path):
    class Two(ClassificationModule):
        def __init__(self):
            super().__init__(network="digits_resnet", norm="en")
            self.second = ClassificationModule(network="digits_resnet", norm="en").network

        def forward(self, images):
            return self.network(images) + self.second(images)

    fit(tmp_path, model=Two())
    names = {layer.layer for layer in read_ratios(tmp_path)[0].layers}
    assert len(names) == 2 * LAYERS and {"bn1", "second.bn1"} <= names


def test_a_full_disk_stops_nothing(tmp_path):
    with pytest.warns(UserWarning, match=r"ratios\.csv cannot be written, training goes on"):
        fit(tmp_path / "nowhere")


def rows_of(epoch, step, split="val"):
    layers = static_ratios(torch.nn.Sequential(ClassificationModule(norm="sn", network="digits_resnet")))[:2]
    return Epoch(epoch, step, split, layers)


def test_a_resume_drops_what_came_after_its_checkpoint(tmp_path):
    for epoch in range(3):
        for split in ("val", "train"):
            append_ratios(tmp_path, rows_of(epoch, 3 * epoch + 2, split))
    path = tmp_path / "ratios.csv"
    whole = path.read_text()
    path.write_text(whole[:-9])  # killed while the last row was written
    trim_tables(tmp_path, step=6)  # the checkpoint of epoch 1
    assert [(e.epoch, e.split) for e in read_ratios(tmp_path)] == [
        (0, "val"), (0, "train"), (1, "val"), (1, "train"),
    ]  # fmt: skip
    append_ratios(tmp_path, rows_of(2, 8))
    append_ratios(tmp_path, rows_of(2, 8, "train"))
    assert path.read_text().splitlines() == whole.splitlines()
    trim_tables(tmp_path, step=0)
    assert path.read_text().split() == [",".join(COLUMNS)]


def test_a_resumed_fit_goes_on_in_the_file(tmp_path):
    for epoch in range(2):  # what an earlier run left, the second epoch after its checkpoint
        append_ratios(tmp_path, rows_of(epoch, 3 * epoch + 2))
    model = ClassificationModule(network="digits_resnet", norm="en")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 3
    callback = RatioMonitor(tmp_path)
    callback.on_fit_start(trainer, model)
    callback.on_train_start(trainer, model)
    assert [epoch.epoch for epoch in read_ratios(tmp_path)] == [0]
