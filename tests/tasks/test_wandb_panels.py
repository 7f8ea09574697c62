"""What is handed to W&B, by value: pictures, confusions, histograms, artifacts, fingerprints."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.loggers import ResilientWandb
from tasks.loggers.panels import (
    Bars,
    Confusion,
    Histogram,
    Picture,
    Pictures,
    Rows,
    ratio_histograms,
    to_wandb,
)
from tasks.loggers.record import fingerprint, publish
from tasks.report.facts import RunFacts
from tasks.run_folder import RunFolder


def pixels(image):
    return np.asarray(image.image)


def test_pictures_keep_their_levels_and_masks():
    levels = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5) * 4
    mask = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    (image,) = to_wandb(Pictures([Picture(levels, "seven", {"truth": mask}, ["a", "b", "c"])]), "x")
    # Dark levels as well: W&B takes an array without a level above 1 for one in [0, 1].
    assert (pixels(image) == levels.permute(1, 2, 0).numpy()).all()
    assert image._caption == "seven"
    assert set(image._masks) == {"truth"}


@pytest.mark.parametrize("level", [0, 1, 255])
def test_an_even_picture_keeps_its_level(level):
    (image,) = to_wandb(Pictures([Picture(torch.full((3, 2, 2), level, dtype=torch.uint8))]), "x")
    assert (pixels(image) == level).all()


def test_a_table_holds_its_cells():
    table = to_wandb(Rows(("class", "accuracy"), [("a", 0.5)]), "x")
    assert (table.columns, table.data) == (["class", "accuracy"], [["a", 0.5]])


def test_bars_leave_out_what_is_not_known():
    chart = to_wandb(Bars(("class", "iou"), {"a": 0.5, "b": float("nan")}), "x")
    assert chart.table.columns == ["class", "iou"] and chart.table.data == [["a", 0.5]]
    assert chart.spec.spec_name == "wandb/bar/v0"


def test_the_confusion_matrix_has_a_row_for_each_pair():
    counts = np.array([[5, 2], [0, 3]])
    chart = to_wandb(Confusion(counts, ["cat", "dog"]), "test/confusion")
    assert chart.spec.spec_name == "wandb/confusion_matrix/v1"
    assert chart.table.columns == ["Actual", "Predicted", "nPredictions"]
    assert chart.table.data == [["cat", "cat", 5], ["cat", "dog", 2], ["dog", "cat", 0], ["dog", "dog", 3]]


def test_of_many_classes_the_pairs_that_are_confused_most_are_listed():
    counts = np.diag(np.full(101, 9))
    counts[3, 7], counts[50, 2] = 4, 6
    table = to_wandb(Confusion(counts, [f"c{i}" for i in range(101)]), "x")
    assert table.data == [["c50", "c2", 6], ["c3", "c7", 4]]


def test_histograms_leave_out_what_is_not_known():
    found = to_wandb(Histogram(np.array([0.0, 0.5, np.nan, 1.0])), "x")
    assert sum(found.histogram) == 3 and (found.bins[0], found.bins[-1]) == (0.0, 1.0)


def test_ratios_become_a_histogram_over_the_layers_for_each_normalizer():
    metrics = {"train/loss": 1.0, "ratios/layer1.bn1/in": 0.1, "ratios/layer2.bn1/in": 0.9}
    found = ratio_histograms(metrics | {"ratios/layer1.bn1/bn": 0.52})
    assert set(found) == {"ratios_over_layers/in", "ratios_over_layers/bn"}
    counts = found["ratios_over_layers/in"].histogram
    # 32 bins over [0, 1]: 0.1 lies in the fourth, 0.9 in the 29th.
    assert [place for place, count in enumerate(counts) if count] == [3, 28]
    assert [p for p, count in enumerate(found["ratios_over_layers/bn"].histogram) if count] == [16]
    assert ratio_histograms({"train/loss": 1.0}) == {}


class Data:
    """Two splits; the third was not downloaded."""

    def examples(self, split):
        if split == "test":
            raise UserError("there is no test split")
        return [None] * {"train": 3, "val": 1}[split]

    def labels_of(self, split):
        """That there are labels."""

    def labels(self, split):
        return np.array([2, 0, 1][: len(self.examples(split))])

    def sample_name(self, split, index):
        return f"{split}{index}.png"


def test_a_fingerprint_is_that_of_names_and_labels():
    found = fingerprint(Data())
    train = hashlib.sha256(b"train0.png\t2\ntrain1.png\t0\ntrain2.png\t1\n").hexdigest()
    val = hashlib.sha256(b"val0.png\t2\n").hexdigest()
    assert found == {
        "train": {"samples": 3, "sha256": train},
        "val": {"samples": 1, "sha256": val},
    }


class Experiment:
    """Stands for a run of W&B."""

    id = "abc"

    def __init__(self):
        self.summary, self.config = {}, SimpleNamespace(update=lambda *args, **options: None)
        self.logged, self.used = [], []

    def log_artifact(self, artifact):
        self.logged.append(artifact)

    def use_artifact(self, artifact):
        self.used.append(artifact)

    def log(self, values):
        """Nothing."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves a file open
@pytest.mark.parametrize("offline", [False, True])
def test_checkpoints_and_data_become_artifacts_when_online(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    experiment = Experiment()
    logger = ResilientWandb(experiment=experiment, save_dir=tmp_path, offline=offline)
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    folder.best.write_bytes(b"best")
    folder.last.write_bytes(b"last")
    logger.log_dataset("digits", {"train": {"samples": 3}})
    facts = RunFacts("classification", "run", monitor="val/top1", best=0.75, test={"test/top1": 0.5})
    publish([logger], folder, facts, dict)
    assert experiment.summary["best"] == 0.75 and experiment.summary["test/top1"] == 0.5
    assert experiment.summary["task"] == "classification" and "gpu_memory" not in experiment.summary
    if offline:
        assert not experiment.logged and not experiment.used
        return
    data, checkpoints = experiment.logged
    assert (checkpoints.type, checkpoints.name) == ("model", "checkpoints-abc")
    assert {name: entry.size for name, entry in checkpoints.manifest.entries.items()} == {
        "best.ckpt": 4,
        "last.ckpt": 4,
    }
    assert checkpoints.metadata["best"] == 0.75
    assert (data.type, data.name) == ("dataset", "digits")
    stored = data.manifest.entries["fingerprint.json"].local_path
    assert json.loads(open(stored).read()) == {"train": {"samples": 3}}
    again = ResilientWandb(experiment=Experiment(), save_dir=tmp_path, offline=False)
    again.log_dataset("digits", {"train": {"samples": 3}})
    assert again.experiment.logged[0].digest == data.digest


def test_a_failure_of_wandb_is_told_once_and_stops_nothing(tmp_path):
    class Broken(Experiment):
        def log(self, values):
            raise OSError(28, "No space left on device")

        def finish(self):
            raise ConnectionResetError("Connection lost")

    logger = ResilientWandb(experiment=Broken(), save_dir=tmp_path)
    with pytest.warns(UserWarning, match="ResilientWandb failed, training goes on.*No space left") as caught:
        logger.log_metrics({"train/loss": 1.0}, step=0)
        logger.log_panels({"x": Histogram(np.zeros(1))})
        publish([logger], RunFolder(tmp_path), RunFacts("a", "b"), lambda: 1 / 0)
        logger.finish()
    assert len(caught) == 1


def test_what_the_task_shows_is_not_built_without_wandb(tmp_path):
    publish([], RunFolder(tmp_path), RunFacts("a", "b"), lambda: pytest.fail("built for nobody"))
