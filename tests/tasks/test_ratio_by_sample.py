"""λ of single samples and of classes over epochs, as a run keeps them."""

import numpy as np
import torch
from pytorch_lightning import Trainer

from exemplar_norm import record_ratios
from tasks.classification.digits import DigitsDataModule
from tasks.classification.module import ClassificationModule
from tasks.ratio_monitor import RatioMonitor
from tasks.ratios.by_sample import SampleKeeper, read_by_sample, trim_by_sample
from tasks.ratios.layers import exemplar_layers
from tasks.ratios.survey import LayerRatios
from tasks.ratios.table import CLASS_COLUMNS, Epoch, append_by_class, read_by_class, trim_tables

LAYERS, SAMPLES, EPOCHS = 17, 270, 2


def test_a_fit_keeps_what_a_loop_over_the_samples_finds(tmp_path):
    model = ClassificationModule(network="digits_resnet", norm="en")
    torch.manual_seed(0)
    for layer in exemplar_layers(model).values():
        torch.nn.init.normal_(layer.gate.fc2.weight)
    data = DigitsDataModule(image_size=16, batch_size=32)
    Trainer(
        accelerator="cpu", logger=False, callbacks=[RatioMonitor(tmp_path)], max_epochs=EPOCHS,
        limit_train_batches=2, log_every_n_steps=1, use_distributed_sampler=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, datamodule=data)  # fmt: skip
    rows, labels = {}, []
    model.eval()
    for images, of_batch, _ in data.val_dataloader():
        with record_ratios(model.network) as ratios, torch.no_grad():
            model(images)
        for name, ratio in ratios.items():
            rows.setdefault(name, []).append(ratio)
        labels += of_batch.tolist()
    expected = torch.cat([torch.cat(parts) for parts in rows.values()], 1)
    found = read_by_sample(tmp_path)
    assert (found.epoch, found.step) == (1, 3)
    assert found.columns == [(name, key) for name in rows for key in ("in", "ln", "bn")]
    assert found.indices.tolist() == [*range(SAMPLES)] and found.labels.tolist() == labels
    torch.testing.assert_close(torch.from_numpy(found.vectors), expected, rtol=0, atol=1e-6)  # float32
    by_class = read_by_class(tmp_path)
    assert by_class.epochs == [0, 1] and by_class.columns == found.columns
    assert by_class.classes == [str(number) for number in range(10)]
    of_class = [expected[np.array(labels) == number].double().mean(0) for number in range(10)]
    # The file has seven digits.
    np.testing.assert_allclose(by_class.means[1], torch.stack(of_class, 1), rtol=2e-6)
    assert np.abs(by_class.means[1] - by_class.means[0]).max() > 1e-4
    trim_by_sample(tmp_path, 4)
    assert read_by_sample(tmp_path) is not None
    trim_by_sample(tmp_path, 3)
    assert read_by_sample(tmp_path) is None


def kept(order, most, batch=7, ranks=1):
    """What is kept of samples that come in an order; λ of a sample is its index."""
    keepers = [SampleKeeper({"a": ("in", "bn"), "never": ("bn",)}, most) for _ in range(ranks)]
    for rank, keeper in enumerate(keepers):
        for part in torch.tensor(order[rank::ranks]).split(batch):
            keeper.add({"a": torch.stack([part, -part], 1)}, part, part % 5)
    return [keeper.finish(2, 9) for keeper in keepers]


def test_few_of_many_are_kept_whatever_the_order_and_spread_out():
    (found,) = kept(range(1000), 50)
    (other,) = kept([*range(999, -1, -1)], 50, batch=64)
    assert found.indices.tolist() == other.indices.tolist() == sorted(found.indices)
    assert len(found.indices) == 50 and (found.epoch, found.step) == (2, 9)
    assert found.columns == [("a", "in"), ("a", "bn")]
    assert found.vectors[:, 0].tolist() == found.indices.tolist()
    assert (found.labels == found.indices % 5).all()
    # A tenth of the range holds about a tenth of the samples, and no period of the data set is preferred.
    assert np.bincount(found.indices // 100, minlength=10).min() >= 3
    for period in (2, 4, 8):
        counts = np.bincount(found.indices % period, minlength=period)
        assert counts.min() >= 25 / period, (period, counts)


def test_processes_keep_together_what_one_keeps(monkeypatch):
    (one,) = kept(range(300), 40)
    parts = []
    for rank in range(3):  # each keeps as much as all may
        keeper = SampleKeeper({"a": ("in", "bn")}, 40)
        for part in torch.arange(rank, 300, 3).split(7):
            keeper.add({"a": torch.stack([part, -part], 1)}, part, part % 5)
        monkeypatch.setattr("tasks.ratios.by_sample.gathered", lambda items: parts.extend(items) or parts)
        together = keeper.finish(2, 9)
    assert together.indices.tolist() == one.indices.tolist()
    assert np.array_equal(together.vectors, one.vectors) and np.array_equal(together.labels, one.labels)


def test_where_samples_have_no_ratios_of_their_own_nothing_is_kept():
    keeper = SampleKeeper({"a": ("in", "bn")})
    keeper.add({"a": torch.full((5, 2), 0.5)}, torch.arange(2), None)  # windows of two images
    assert keeper.finish(0, 0) is None
    keeper.reset()
    assert keeper.finish(0, 0) is None
    keeper.add({"a": torch.eye(4)[:, :2]}, torch.arange(2), None)  # two passes over two samples: the first
    found = keeper.finish(0, 0)
    assert found.vectors.tolist() == [[1, 0], [0, 1]] and found.labels.tolist() == [-1, -1]


def epoch_of(number, value):
    mean, zero = np.array([value, 1 - value]), np.zeros(2)
    by_class = np.array([[value, 1 - value], [np.nan, np.nan], [1 - value, value]])
    layer = LayerRatios(
        "bn1", "en", "both", ("in", "bn"), 4, mean, zero, mean, 1.0, 0.0, 0.5, by_class, np.array([3, 0, 1])
    )
    return Epoch(number, 3 * number + 2, "val", [layer])


NAMES = ['a, "b"', "empty", "two\nlines"]


def test_classes_of_all_epochs_are_kept_and_trimmed(tmp_path):
    for number, value in enumerate((0.5, 0.25, 0.125)):
        append_by_class(tmp_path, epoch_of(number, value), NAMES)
    path = tmp_path / "ratios_by_class.csv"
    whole = path.read_bytes()
    found = read_by_class(tmp_path)
    assert found.epochs == [0, 1, 2] and found.classes == [NAMES[0], NAMES[2]]
    assert found.columns == [("bn1", "in"), ("bn1", "bn")]
    assert found.means[:, 0].tolist() == [[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]]
    path.write_bytes(whole[:-3])  # killed while the last row was written
    assert np.isnan(read_by_class(tmp_path).means[2, 1, 1])
    trim_tables(tmp_path, 6)
    assert read_by_class(tmp_path).epochs == [0, 1]
    append_by_class(tmp_path, epoch_of(2, 0.125), NAMES)
    assert path.read_bytes() == whole


def test_a_table_of_an_earlier_version_makes_room(tmp_path):
    path = tmp_path / "ratios_by_class.csv"
    path.write_text("epoch,layer,normalizer,class,samples,mean\n3,bn1,in,0,9,0.5\n")
    trim_tables(tmp_path, 100)
    append_by_class(tmp_path, epoch_of(0, 0.5), NAMES)
    assert path.read_text().splitlines()[0] == ",".join(CLASS_COLUMNS)
    assert read_by_class(tmp_path).epochs == [0]


def test_no_file_is_no_classes(tmp_path):
    assert read_by_class(tmp_path) is None and read_by_sample(tmp_path) is None
    assert not [*tmp_path.iterdir()]
