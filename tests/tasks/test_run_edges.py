"""Corners of a run: lengths, seeds, moved folders, another data set, a learning rate that was found."""

import os
import shutil

import pytest
import torch
import yaml
from image_trees import WNIDS, imagenet_tree
from run_files import rows_of

from tasks.file_list import walk


def test_a_run_bounded_by_steps(fit, runs):
    outcome = fit(
        "--trainer.max_steps",
        "5",
        "--trainer.max_epochs",
        "-1",
        "--model.schedule",
        "constant",
        "--model.warmup_epochs",
        "1",
    )
    assert outcome.code == 0, outcome.err
    rates = [float(row["train/lr"]) for row in rows_of(runs / "digits/metrics.csv") if row["train/lr"]]
    # Three batches an epoch: the warm-up is three steps long.
    assert rates[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05], rel=1e-6) and len(rates) == 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--trainer.max_epochs -1", "expected max_epochs or max_steps"),
        ("--seed_everything -1", "seed_everything: expected a number from 0"),
        ("--trainer.overfit_batches 2", "trainer.overfit_batches"),
        ("--base [a.yaml]", "--base: belongs into a configuration file"),
    ],
)
def test_what_cannot_be_run_is_one_line(fit, options, told):
    outcome = fit(*options.split(), "--model.schedule", "cosine")
    assert outcome.code == 2 and told in outcome.err and "Traceback" not in outcome.err


def test_no_test_batches(fit):
    assert fit("--trainer.limit_test_batches", "0", "--test", "true").code == 0


def test_a_moved_run_keeps_its_best(fit, runs, tmp_path):
    assert fit("--trainer.max_epochs", "2").code == 0
    score = torch.load(runs / "digits/checkpoints/best.ckpt", weights_only=True)["epoch"]
    moved = tmp_path / "elsewhere/digits"
    shutil.copytree(runs / "digits", moved)
    best = (moved / "checkpoints/best.ckpt").read_bytes()
    # At this rate every later epoch is worse.
    worse = ("--model.lr", "1e4", "--model.schedule", "constant", "--trainer.max_epochs", "3")
    outcome = fit("--resume", moved / "checkpoints/last.ckpt", *worse)
    assert outcome.code == 0, outcome.err
    content = torch.load(moved / "checkpoints/best.ckpt", weights_only=True)
    assert content["epoch"] == score or (moved / "checkpoints/best.ckpt").read_bytes() == best


def test_a_run_folder_is_a_checkpoint_too(fit, cli, runs):
    assert fit("--trainer.max_epochs", "1").code == 0
    outcome = cli("test", "--ckpt_path", runs / "digits")
    assert outcome.code == 0 and "best.ckpt" in outcome.out


def test_the_found_learning_rate_is_used_to_the_end(fit, runs, tmp_path):
    overlay = tmp_path / "finder.yaml"
    finder = {"num_training_steps": 20, "min_lr": 1e-3, "max_lr": 0.05, "early_stop_threshold": None}
    callback = {"class_path": "pytorch_lightning.callbacks.LearningRateFinder", "init_args": finder}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    for name, options in {"plain": (), "scaled": ("--model.lr_batch", "256")}.items():
        line = ("--config", overlay, "--name", name, "--model.schedule", "constant", *options)
        assert fit(*line, "--trainer.limit_train_batches", "20").code == 0
        rates = {row["train/lr"] for row in rows_of(runs / name / "metrics.csv") if row["train/lr"]}
        # One rate throughout, none of those given: 0.1, nor 0.1 · 32/256.
        assert len(rates) == 1 and 1e-3 <= float(rates.pop()) <= 0.05


@pytest.fixture
def image_config(tmp_path):
    root = imagenet_tree(tmp_path / "imagenet", classes=3, train=4, val=2)
    settings = {
        "dataset": "imagenet",
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "model": {"network": "digits_resnet", "norm": "bn", "lr": 0.01},
        "data": {"root": str(root), "batch_size": 4, "num_workers": 0, "train_size": 32},
        "wandb": {"mode": "disabled"},
        "runs_dir": str(tmp_path / "runs"),
    }
    settings["data"] |= {"eval_resize": 36, "eval_size": 32}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_checkpoint_of_other_classes(cli, image_config, tmp_path, runs):
    assert cli("fit", "--config", image_config).code == 0
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "imagenet", other)
    for split in ("train", "val"):
        (other / split / WNIDS[0]).rename(other / split / "n09999999")
    outcome = cli("test", "--ckpt_path", runs / "tiny", "--data.root", other)
    assert outcome.code == 2
    assert f"expected class 0 to be {WNIDS[0]!r}, got {WNIDS[1]!r}" in outcome.err


def test_names_that_are_not_unicode(cli, image_config, tmp_path, runs):
    for path in list((tmp_path / "imagenet/val").rglob("*.JPEG")):
        os.rename(path, os.fsencode(path.parent) + b"/caf\xe9" + os.fsencode(path.name))
    outcome = cli("fit", "--config", image_config)
    assert outcome.code == 0, outcome.err
    assert (runs / "tiny/report.html").is_file()


def test_a_link_that_leads_back_is_not_followed(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/1.jpg").touch()
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "a/b")
    assert walk(tmp_path, (".jpg",)) == ["a/b/1.jpg", "elsewhere/1.jpg"]


def test_one_class_is_no_classification(cli, image_config, tmp_path):
    root = imagenet_tree(tmp_path / "single", classes=1, train=2, val=1)
    outcome = cli("fit", "--config", image_config, "--data.root", root)
    assert outcome.code == 2 and "expected two classes or more, got 1" in outcome.err


def test_images_too_small_for_a_network_are_one_line(fit):
    outcome = fit("--model.network", "vgg11_bn", "--data.image_size", "8")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert "data.image_size: the images are too small for network 'vgg11_bn'" in outcome.err
