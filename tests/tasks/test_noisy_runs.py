"""Real runs of `python -m tasks.noisy_labels`, on the digits and on a tree in WebVision's layout."""

from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from run_files import rows_of
from webvision_tree import SYNSETS, TITLES, imagenet_val, webvision_tree

from tasks.noisy_labels.methods import MethodName
from tasks.noisy_labels.module import NoisyLabelsModule

DIGITS = {
    "dataset": "digits",
    "trainer": {"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    | {"limit_train_batches": 4, "limit_val_batches": 2, "limit_test_batches": 2, "limit_predict_batches": 2},
    # A rate that does not depend on the length of the run.
    "model": {"network": "digits_resnet", "norm": "bn", "lr": 0.05, "schedule": "constant"},
    "data": {"batch_size": 32, "image_size": 16, "noise": {"kind": "symmetric", "rate": 0.4}},
    "wandb": {"mode": "disabled"},
}
WARM_UPS = {
    "divide_mix": ("--model.loss_options.warm_up", "1"),
    "forward": ("--model.loss_options.warm_up", "1"),
}


def load(path):
    return torch.load(path, weights_only=True)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def noisy(command):
    """noisy(*args) → Outcome of `python -m tasks.noisy_labels *args`."""
    from tasks.noisy_labels.__main__ import main

    return command(main)


@pytest.fixture
def digits(noisy, tmp_path):
    """digits(*args) → Outcome of a small fit."""
    config = tmp_path / "digits.yaml"
    config.write_text(yaml.safe_dump(DIGITS))
    return lambda *args: noisy("fit", "--config", config, "--runs_dir", tmp_path / "runs", *args)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "noisy_labels" / "digits"


def test_a_fit_leaves_labels_suspects_and_a_report(digits, noisy, folder):
    outcome = digits("--test", "true", "--model.norm", "en", "--trainer.max_epochs", "2")
    assert outcome.code == 0, outcome.err
    labels = rows_of(folder / "noisy_labels.csv")
    wrong = [row["given"] != row["true"] for row in labels]
    assert len(labels) == 1168 and f"{np.mean(wrong):.4f} of 1,168 labels are wrong" in outcome.out
    suspects = rows_of(folder / "suspects.csv")
    assert list(suspects[0]) == ["sample", "given", "predicted", "score", "path", "true"]
    assert sorted(int(row["sample"]) for row in suspects) == list(range(1168))
    scores = [float(row["score"]) for row in suspects]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.5
    for row in suspects:
        label = labels[int(row["sample"])]
        assert (row["path"], row["given"], row["true"]) == (label["sample"], label["given"], label["true"])
    seen = [row for row in suspects if row["predicted"]]
    assert 128 <= len(seen) <= 256  # 2 epochs × 4 batches × 32, some twice
    report = (folder / "report.html").read_text()
    for title in ("Noisy labels", "Wrong labels over epochs", "Loss of the training samples"):
        assert f"<h2>{title}</h2>" in report
    assert "<h2>Most suspicious labels</h2>" in report and "<h2>Confusion matrix (test)</h2>" in report
    assert "could not be drawn" not in report
    last = rows_of(folder / "metrics.csv")
    for name in ("memorised", "clean_fit", "noise_auroc_loss", "noise_auroc_suspects"):
        values = [float(row[f"train/{name}"]) for row in last if row[f"train/{name}"]]
        assert len(values) == 2 and all(0 <= value <= 1 for value in values), name
    assert len([row for row in last if row["train/noise_auroc_ratio"]]) == 1  # after the last epoch
    for told in ("val/top1, best (last)", "wrong labels memorised", "noise AUROC, ratios of EN"):
        assert told in outcome.out
    best = folder / "checkpoints/best.ckpt"
    predicted = noisy("predict", "--ckpt_path", best)
    assert predicted.code == 0, predicted.err
    assert len(rows_of(folder / "predictions.csv")) == 64
    validated = noisy("validate", "--ckpt_path", best)
    assert validated.code == 0 and "val/top1" in validated.out, validated.err


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method(digits, folder, method):
    outcome = digits("--model.method", method, *WARM_UPS.get(method, ()), "--trainer.max_epochs", "2")
    assert outcome.code == 0, outcome.err
    state = load(folder / "checkpoints/last.ckpt")
    selects = method in ("co_teaching", "divide_mix")
    assert any(name.startswith("second.") for name in state["state_dict"]) == selects
    rows = rows_of(folder / "metrics.csv")
    assert ("train/selection_precision" in rows[0]) == selects
    assert all(np.isfinite(float(row["train/loss"])) for row in rows if row["train/loss"])


@pytest.mark.parametrize("method", ["ce", "elr", "co_teaching", "divide_mix", "forward"])
def test_the_true_label_never_reaches_the_loss(digits, tmp_path, monkeypatch, method):
    """With other true labels, training ends with the same weights; every label trained on is wrong."""
    from tasks.noisy_labels.data import SyntheticNoise

    options = ("--model.method", method, *WARM_UPS.get(method, ()), "--data.noise.rate", "1.0")
    options += ("--trainer.max_epochs", "2")
    trained_on, step, prepare = [], NoisyLabelsModule.training_step, SyntheticNoise.prepare_labels

    def training_step(self, batch, batch_idx):
        trained_on.extend(zip(batch[2].tolist(), batch[1].tolist(), strict=True))
        return step(self, batch, batch_idx)

    def other_truth(self, folder):
        prepare(self, folder)
        self.true_labels = (self.true_labels + 3) % 10

    monkeypatch.setattr(NoisyLabelsModule, "training_step", training_step)
    assert digits(*options, "--name", "one").code == 0
    monkeypatch.setattr(SyntheticNoise, "prepare_labels", other_truth)
    assert digits(*options, "--name", "other").code == 0
    runs = tmp_path / "runs" / "noisy_labels"
    one, other = (load(runs / name / "checkpoints/last.ckpt")["state_dict"] for name in ("one", "other"))
    assert same(one, other)
    labels = rows_of(runs / "one/noisy_labels.csv")
    assert len(trained_on) == 2 * 2 * 4 * 32
    for index, label in trained_on:
        assert label == int(labels[index]["given"]) != int(labels[index]["true"])
    # The metrics do read them: with other ones they differ.
    read = [rows_of(runs / name / "metrics.csv") for name in ("one", "other")]
    assert [row["train/loss"] for row in read[0]] == [row["train/loss"] for row in read[1]]
    assert read[0] != read[1] or method == "ce"


@pytest.mark.parametrize(
    "options",
    [
        ("--model.method", "elr", "--model.mixup", "0.5"),
        ("--model.method", "forward", *WARM_UPS["forward"]),
        ("--model.method", "divide_mix", *WARM_UPS["divide_mix"]),
    ],
    ids=["elr", "forward", "divide_mix"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(digits, tmp_path, options):
    assert digits(*options, "--name", "whole").code == 0
    half = (*options, "--name", "half", "--resume", "auto")
    assert digits(*half, "--trainer.max_epochs", "2").code == 0
    # Another seed of the noise: the labels are those that the run was started with.
    resumed = digits(*half, "--data.noise.seed", "7")
    assert resumed.code == 0 and "after epoch 2" in resumed.out, resumed.err
    whole, half = (tmp_path / "runs" / "noisy_labels" / name for name in ("whole", "half"))
    assert same(*(load(run / "checkpoints/last.ckpt")["state_dict"] for run in (whole, half)))
    assert (whole / "noisy_labels.csv").read_bytes() == (half / "noisy_labels.csv").read_bytes()
    assert (whole / "suspects.csv").read_bytes() == (half / "suspects.csv").read_bytes()
    assert rows_of(whole / "metrics.csv") == rows_of(half / "metrics.csv")


def test_labels_of_other_data_are_refused_on_resume(digits, folder):
    assert digits("--trainer.max_epochs", "1").code == 0
    path = folder / "noisy_labels.csv"
    path.write_text(path.read_text().replace("\n", "\n9", 1))
    outcome = digits("--resume", "auto")
    assert outcome.code == 2 and f"{path}:2: expected sample" in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model.method", "gce", "--model.loss_options.q", "2"), "model.loss_options for loss 'gce': q"),
        (
            ("--model.method", "ce", "--model.loss_options.q", "0.5"),
            "expected no options, got 'q'",
        ),
        (
            ("--model.method", "co_teaching", "--model.loss_options.q", "0.5"),
            "forget_rate, gradual_epochs, got 'q'",
        ),
        (("--model.method", "divide_mix", "--model.mixup", "1"), "model.mixup: expected 0 with divide_mix"),
        (("--model.method", "mae"), "model.method: expected one of ce, label_smoothing"),
        (("--model.loss_options.gamma", "1"), "model.loss_options: unknown"),
        (("--data.noise.rate", "1.5"), "data.noise.rate: expected a number in [0, 1], got 1.5"),
        (("--data.noise.kind", "none"), "data.noise.rate: expected 0 with kind none, got 0.4"),
        (("--data.noise.kind", "flip"), "data.noise"),
        (("--model.ratio_epochs", "-1"), "model.ratio_epochs: expected a number ≥ 0, got -1"),
        (
            ("--model.method", "forward", "--model.loss_options.transition", "/nowhere.csv"),
            "model.loss_options.transition: cannot read /nowhere.csv",
        ),
    ],
)
def test_bad_options_are_one_line(digits, tmp_path, options, told):
    outcome = digits(*options)
    assert outcome.code == 2 and told in outcome.error, outcome.err
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.fixture(scope="module")
def webvision(tmp_path_factory):
    """A configuration of a small WebVision with ImageNet beside it."""
    folder = tmp_path_factory.mktemp("webvision")
    root = webvision_tree(folder / "webvision", google=8, flickr=4, val=3)
    imagenet = imagenet_val(folder / "imagenet")
    config = {
        "dataset": "webvision",
        "trainer": DIGITS["trainer"] | {"max_epochs": 2, "limit_train_batches": 1.0},
        "model": {"network": "digits_resnet", "norm": "bn", "lr": 0.05},
        "data": {"root": str(root), "imagenet_root": str(imagenet), "source": "both", "batch_size": 8}
        | {"num_workers": 2, "train_size": 32, "eval_resize": 36, "eval_size": 32},
        "wandb": {"mode": "disabled"},
    }
    config["trainer"] |= {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "limit_predict_batches": 1.0}
    path = folder / "webvision.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("method", ["elr", "divide_mix"])
def test_webvision_with_both_validation_sets(noisy, webvision, tmp_path, method):
    options = ("--model.method", method, *WARM_UPS.get(method, ()))
    outcome = noisy("fit", "--config", webvision, "--runs_dir", tmp_path, *options, "--test", "true")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "noisy_labels" / "webvision"
    rows = rows_of(folder / "metrics.csv")
    sets = [f"{split}/{one}top{k}" for split in ("val", "test") for one in ("", "imagenet_") for k in (1, 5)]
    for name in sets:
        values = [float(row[name]) for row in rows if row[name]]
        # Shares of 12 images of WebVision, of 8 of ImageNet.
        images = 8 if "imagenet" in name else 12
        assert len(values) == (2 if name.startswith("val") else 1), name
        assert all(value * images == pytest.approx(round(value * images), abs=1e-4) for value in values), name
        assert name in outcome.out
    suspects = rows_of(folder / "suspects.csv")
    assert list(suspects[0]) == ["sample", "given", "predicted", "score", "path"]  # nobody knows the truth
    assert len({row["path"] for row in suspects}) == len(suspects) == 48
    assert {row["given"] for row in suspects} == set(TITLES)
    assert not (folder / "noisy_labels.csv").exists()
    assert "train/memorised" not in rows[0]
    tested = noisy("test", "--ckpt_path", folder / "checkpoints/best.ckpt")
    assert tested.code == 0 and "test/imagenet_top1" in tested.out, tested.err
    predicted = noisy("predict", "--ckpt_path", folder / "checkpoints/best.ckpt")
    assert predicted.code == 0, predicted.err
    assert [row["true"] for row in rows_of(folder / "predictions.csv")] == [
        TITLES[label] for label in range(len(SYNSETS)) for _ in range(3)
    ]
