"""Runs of the command line on an image tree in ImageNet's layout."""

import csv

import pytest
import torch
import yaml
from image_trees import NAMES, WNIDS, break_file, imagenet_tree, write_meta


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = imagenet_tree(tmp_path_factory.mktemp("trees") / "imagenet", classes=3, train=8, val=4)
    write_meta(root)
    return root


@pytest.fixture
def config(tmp_path, tree):
    """A small configuration of the tree, as a file."""
    path = tmp_path / "tiny.yaml"
    data = {"root": str(tree), "batch_size": 8, "num_workers": 2, "train_size": 32}
    text = {
        "dataset": "imagenet",
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "model": {"network": "digits_resnet", "norm": "bn", "lr": 0.05},
        "data": {**data, "eval_resize": 36, "eval_size": 32},
        "wandb": {"mode": "disabled"},
    }
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture
def image_fit(cli, config, tmp_path):
    return lambda *args: cli("fit", "--config", config, "--runs_dir", tmp_path / "runs", *args)


def test_fit_test_and_predict(image_fit, cli, config, runs):
    outcome = image_fit("--data.auto_augment", "trivialaugment", "--data.repeats", "2", "--test", "true")
    assert outcome.code == 0, outcome.err
    best = runs / "tiny/checkpoints/best.ckpt"
    outcome = cli("predict", "--config", config, "--ckpt_path", best)
    assert outcome.code == 0, outcome.err
    with (runs / "tiny/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["true"] for row in rows] == [name for name in NAMES[:3] for _ in range(4)]
    assert rows[4]["sample"] == f"{WNIDS[1]}/ILSVRC2012_val_00000005.JPEG"
    assert {row["predicted"] for row in rows} <= set(NAMES[:3])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_whatever_the_workers(image_fit, runs, workers):
    # A rate that does not depend on the length of the run.
    options = ["--model.schedule", "constant", "--data.auto_augment", "randaugment", "--data.erasing", "0.5"]
    options += ["--data.repeats", "2", "--model.mixup", "0.2", "--model.cutmix", "1.0"]
    assert image_fit(*options, "--name", "whole").code == 0
    half = [*options, "--name", "half", "--resume", "auto"]
    assert image_fit(*half, "--trainer.max_epochs", "1").code == 0
    resumed = image_fit(*half, "--data.num_workers", workers)
    assert resumed.code == 0 and "after epoch 1" in resumed.out, resumed.err
    whole, half = (
        torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "half")
    )
    assert whole.keys() == half.keys() and all(torch.equal(whole[key], half[key]) for key in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_end_a_run_in_one_line(image_fit, monkeypatch, tmp_path, workers):
    monkeypatch.setattr("tasks.data.temporary_log", lambda: tmp_path / "log")
    root = imagenet_tree(tmp_path / "broken", classes=2, train=4, val=2)
    for path in sorted((root / "train" / WNIDS[0]).iterdir())[:2]:
        break_file(path, "truncated")
    outcome = image_fit("--data.root", root, "--data.num_workers", workers)
    assert outcome.code == 2
    assert (
        "unreadable images in train: 1 of 8, more than data.max_unreadable (0.001)" in outcome.err
        and "Traceback" not in outcome.err
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--data.root", "/nowhere"), "data.root: expected a folder, got /nowhere, which does not exist"),
        (("--data.erasing", "2"), "data.erasing: expected a probability, got 2.0"),
        (("--data.auto_augment", "cutout"), "data.auto_augment"),
        (("--data.interpolation", "nearest"), "data.interpolation"),
        (("--data.contrast", "1"), "contrast"),
    ],
)
def test_bad_options_are_one_line(image_fit, runs, options, told):
    outcome = image_fit(*options)
    assert outcome.code == 2 and told in outcome.error
    assert not runs.exists() or not list(runs.iterdir())
