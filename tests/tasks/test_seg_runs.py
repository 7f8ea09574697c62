"""Runs of the command line of segmentation: digit scenes, and trees in the layouts of two benchmarks."""

import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_files import rows_of
from seg_trees import ODD_SIZE, ade20k_tree, cityscapes_tree
from sent_signals import signal_in
from task_paths import REPOSITORY

from tasks.segmentation.labels import CITYSCAPES
from tasks.segmentation.module import SegmentationModule

DIGITS = REPOSITORY / "conf/segmentation/digits.yaml"
TRAINER = {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}


def state_of(folder, name="last"):
    return torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return cityscapes_tree(tmp_path_factory.mktemp("trees") / "cityscapes", odd=True)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return ade20k_tree(tmp_path_factory.mktemp("trees") / "ade")


@pytest.fixture
def configure(tmp_path):
    """configure(dataset, root, **model) → a small configuration as a file."""

    def write(dataset, root, **model):
        text = {
            "dataset": dataset,
            "trainer": TRAINER,
            "model": {"network": "deeplabv3plus", "encoder": "resnet18", "norm": "en", "lr": 0.01} | model,
            "data": {"root": str(root), "crop_size": [64, 64], "scale": [144, 96], "num_workers": 0},
            "wandb": {"mode": "disabled"},
            "runs_dir": str(tmp_path / "runs"),
        }
        path = tmp_path / f"{dataset}.yaml"
        path.write_text(yaml.safe_dump(text))
        return path

    return write


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs/segmentation"


def test_scenes(seg, tmp_path, runs):
    options = ["--data.scenes", "24", "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "3"]
    options += ["--runs_dir", tmp_path / "runs", "--wandb.mode", "disabled"]
    outcome = seg("fit", "--config", DIGITS, *options, "--test", "true")
    assert outcome.code == 0, outcome.err
    folder = runs / "digits"
    rows = rows_of(folder / "iou_by_class.csv")
    assert [row["class"] for row in rows] == ["background", *map(str, range(10))]
    mean = np.mean([float(row["iou"]) for row in rows])
    tested = [row["test/miou"] for row in rows_of(folder / "metrics.csv") if row["test/miou"]]
    # float32 of the logged mean, six digits of each class.
    assert float(tested[0]) == pytest.approx(mean, abs=1e-6)
    assert f"background               │ {float(rows[0]['iou']):.4f}" in outcome.out
    assert str(folder / "comparisons") in outcome.out
    pictures = sorted(path.name for path in (folder / "comparisons").iterdir())
    # 200 test scenes, six of them evenly spaced.
    assert pictures == ["legend.png", *(f"scene_{i:04d}.png" for i in (0, 40, 80, 119, 159, 199))]
    with Image.open(folder / "comparisons/scene_0000.png") as picture:
        assert picture.size == ((3 * 48 + 2 * 4) * 5, 48 * 5)
    page = (folder / "report.html").read_text()
    assert "could not be drawn" not in page and page.count("<img") == 6
    for title in ("Predictions (test)", "IoU by class (test)", "Confusion matrix (test)"):
        assert title in page
    limit = ["--trainer.limit_predict_batches", "3"]
    predicted = seg("predict", "--ckpt_path", folder / "checkpoints/best.ckpt", *limit)
    assert predicted.code == 0 and f"12 predictions written to {folder / 'predictions'}" in predicted.out
    assert len(list((folder / "predictions/submission").iterdir())) == 12


def test_cityscapes_scores_are_those_of_its_script_on_the_files_written(
    seg, configure, streets, runs, monkeypatch
):
    """fit, test and predict; the official evaluation of what predict wrote gives what test said."""
    config = configure("cityscapes", streets)
    assert seg("fit", "--config", config, "--test", "true").code == 0
    folder = runs / "cityscapes"
    tested = next(row for row in rows_of(folder / "metrics.csv") if row["test/miou"])
    outcome = seg("predict", "--ckpt_path", folder / "checkpoints/best.ckpt")
    assert outcome.code == 0 and "2 predictions written to" in outcome.out, outcome.err

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # of numpy before 2.4, which the script expects
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    truth = sorted(map(str, streets.glob("gtFine/val/*/*_labelIds.png")))
    written = sorted(map(str, (folder / "predictions/submission").rglob("*.png")))
    with Image.open(written[1]) as image:
        assert image.size == ODD_SIZE[::-1] and image.mode == "L"
    for name, value in {"quiet": True, "JSONOutput": False}.items():
        monkeypatch.setattr(script.args, name, value)
    found = script.evaluateImgLists(written, truth, script.args)
    # float32 of the logged value.
    assert float(tested["test/miou"]) == pytest.approx(found["averageScoreClasses"], rel=1e-6)
    assert float(tested["test/iiou"]) == pytest.approx(found["averageScoreInstClasses"], rel=1e-6)
    overlays = sorted(map(str, (folder / "predictions/overlays").rglob("*.png")))
    assert len(overlays) == 2
    check_overlay(overlays[1], sorted(streets.glob("leftImg8bit/val/*/*.png"))[1], written[1])


def check_overlay(overlay, image, submission):
    """Colours of the classes over the image, 3 to 2."""
    drawn, under, ids = (np.asarray(Image.open(path)).astype(float) for path in (overlay, image, submission))
    colours = dict(zip(CITYSCAPES.raw_ids, CITYSCAPES.palette, strict=True))
    over = np.array([colours.get(number, (0, 0, 0)) for number in range(34)])[ids.astype(int)]
    # Rounded to whole levels, after the image was normalised and back.
    np.testing.assert_allclose(drawn, 0.4 * under + 0.6 * over, atol=1.0)


def test_ade20k(seg, configure, places, runs, tmp_path):
    config = configure("ade20k", places, inference={"frame": [96, 64], "scales": [0.5, 1.0], "flip": True})
    outcome = seg("fit", "--config", config, "--test", "true")
    assert outcome.code == 0, outcome.err
    folder = runs / "ade20k"
    tested = next(row for row in rows_of(folder / "metrics.csv") if row["test/miou"])
    both = (float(tested["test/miou"]) + float(tested["test/pixel_acc"])) / 2
    assert float(tested["test/mean_of_both"]) == pytest.approx(both, rel=1e-6)  # float32
    outcome = seg("predict", "--ckpt_path", folder / "checkpoints/best.ckpt")
    assert outcome.code == 0, outcome.err
    right = labelled = 0
    for mask in sorted(places.glob("annotations/validation/*.png")):
        with Image.open(mask) as truth, Image.open(folder / "predictions/submission" / mask.name) as found:
            assert truth.size == found.size
            truth, found = np.asarray(truth), np.asarray(found)
        assert found.min() >= 1 and found.max() <= 150
        right, labelled = right + ((truth == found) & (truth > 0)).sum(), labelled + (truth > 0).sum()
    assert float(tested["test/pixel_acc"]) == pytest.approx(right / labelled, rel=1e-6)  # float32


def test_own_images_are_predicted_where_the_data_set_is_not(seg, configure, places, runs, tmp_path):
    config = configure("ade20k", places)
    assert seg("fit", "--config", config, "--trainer.max_epochs", "1").code == 0
    checkpoint = runs / "ade20k/checkpoints/best.ckpt"
    own = places / "images/validation/ADE_val_00000002.jpg"
    outcome = seg("predict", "--ckpt_path", checkpoint, "--images", own, "--data.root", "/nowhere")
    assert outcome.code == 0 and "1 predictions written to" in outcome.out, outcome.err
    written = runs / "ade20k/predictions/submission/ADE_val_00000002.png"
    with Image.open(own) as given, Image.open(written) as picture:
        assert picture.size == given.size == (96, 89)
    outcome = seg("predict", "--ckpt_path", checkpoint, f"--images={tmp_path / 'none'}")
    assert outcome.code == 2 and "--images: expected an image or a folder, got" in outcome.error


def test_a_resumed_run_equals_an_uninterrupted_one(seg, configure, streets, runs):
    options = ["--model.schedule", "constant", "--model.head_lr", "10"]
    config = configure("cityscapes", streets)
    assert seg("fit", "--config", config, *options, "--name", "whole").code == 0
    half = ["fit", "--config", config, *options, "--name", "half", "--resume", "auto"]
    assert seg(*half, "--trainer.max_epochs", "1").code == 0
    resumed = seg(*half, "--data.num_workers", "1")
    assert resumed.code == 0 and "after epoch 1" in resumed.out, resumed.err
    whole, half = state_of(runs / "whole"), state_of(runs / "half")
    assert whole.keys() == half.keys() and all(torch.equal(whole[key], half[key]) for key in whole)


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_there(seg, tmp_path, runs, monkeypatch, handlers):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    options = ["fit", "--config", DIGITS, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"]
    options += ["--data.scenes", "16", "--trainer.limit_val_batches", "1", "--runs_dir", tmp_path / "runs"]
    options += ["--wandb.mode", "disabled"]
    assert seg(*options, "--name", "whole").code == 0
    signal_in(monkeypatch, SegmentationModule, signal.SIGTERM, epoch=1, batch=1)
    assert seg(*options, "--name", "stopped").code == 128 + signal.SIGTERM
    resumed = seg(*options, "--name", "stopped", "--resume", "auto")
    assert resumed.code == 0 and "after epoch 1 and 2 batches of the next" in resumed.out, resumed.err
    assert rows_of(runs / "stopped/metrics.csv") == rows_of(runs / "whole/metrics.csv")
    whole, stopped = state_of(runs / "whole"), state_of(runs / "stopped")
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_scores_do_not_depend_on_the_batch(seg, configure, tmp_path, runs):
    # Two images of one size, and one of another.
    config = configure("cityscapes", cityscapes_tree(tmp_path / "three", val=3, odd=True))
    assert seg("fit", "--config", config, "--trainer.max_epochs", "1").code == 0
    checkpoint = runs / "cityscapes/checkpoints/best.ckpt"
    tables = []
    for size in (1, 2):
        outcome = seg("test", "--ckpt_path", checkpoint, "--data.batch_size", size)
        assert outcome.code == 0 and "test/miou" in outcome.out, outcome.err
        tables.append((runs / "cityscapes/iou_by_class.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("network", ["deeplabv3", "upernet"])
def test_one_image_a_batch_trains_en_and_is_refused_to_bn(seg, configure, streets, network):
    config = configure("cityscapes", streets, network=network)
    options = ["--data.batch_size", "1", "--trainer.fast_dev_run", "true"]
    assert seg("fit", "--config", config, *options).code == 0
    outcome = seg("fit", "--config", config, *options, "--model.norm", "bn")
    assert outcome.code == 2
    assert "data.batch_size: 1 leaves norm 'bn' a single value a channel in a 1×1 map" in outcome.err
    assert "Traceback" not in outcome.err


def test_validation_now_and_then(seg, tmp_path, runs):
    """Epochs without a validation come before the first one."""
    options = ["--data.scenes", "8", "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "1"]
    options += ["--trainer.num_sanity_val_steps", "0", "--trainer.check_val_every_n_epoch", "2"]
    options += ["--runs_dir", tmp_path / "runs", "--wandb.mode", "disabled"]
    outcome = seg("fit", "--config", DIGITS, *options)
    assert outcome.code == 0, outcome.err
    saved = sorted(path.name for path in (runs / "digits/checkpoints").iterdir())
    assert saved == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model.network", "deeplab"), "model.network: expected one of deeplabv3, deeplabv3plus, psp"),
        (("--model.encoder", "resnet81"), "model.encoder: unknown encoder 'resnet81'"),
        (("--model.head_lr", "0"), "model.head_lr: expected a positive number, got 0.0"),
        (("--model.aux_weight", "-1"), "model.aux_weight: expected a number ≥ 0, got -1.0"),
        (("--model.class_weights", "[1.0, 2.0]"), "model.class_weights: expected 19 weights, got 2"),
        (
            ("--model.inference.mode", "slid"),
            "model.inference.mode: expected one of whole, slide, got 'slid'",
        ),
        (
            ("--model.inference.stride", "[600, 1]"),
            "model.inference.stride: expected steps within the window",
        ),
        (("--model.encoder_weights", "none.ckpt"), "model.encoder_weights: expected "),
        (("--data.root", "/nowhere"), "data.root: expected a folder, got /nowhere, which is none"),
        (("--data.crop_size", "[0, 1]"), "data.crop_size: expected two positive numbers"),
        (("--dataset", "ade"), "dataset"),
    ],
)
def test_bad_options_are_one_line(seg, configure, streets, runs, options, told):
    outcome = seg("fit", "--config", configure("cityscapes", streets), *options)
    assert outcome.code == 2 and told in outcome.error
    assert not runs.exists() or not list(runs.iterdir())


def test_a_checkpoint_of_another_network_is_refused(seg, configure, streets, runs):
    config = configure("cityscapes", streets)
    assert seg("fit", "--config", config, "--trainer.max_epochs", "1").code == 0
    best = runs / "cityscapes/checkpoints/best.ckpt"
    outcome = seg("test", "--config", config, "--ckpt_path", best, "--model.encoder", "resnet34")
    assert outcome.code == 2 and "expected encoder resnet34, got resnet18" in outcome.error
