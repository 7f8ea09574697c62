"""Real fits of Fashion-MNIST, of styled digits and of the control, and of options that make no sense."""

import json

import pytest
import torch
import yaml
from idx_files import fashion_files
from run_files import rows_of
from task_paths import REPOSITORY

CONF = REPOSITORY / "conf" / "classification"


@pytest.fixture
def styled_fit(cli, small, tmp_path):
    """styled_fit(name, *options) → Outcome of a small fit of a shipped configuration."""
    options = ("--config", small, "--runs_dir", tmp_path / "runs", "--trainer.accelerator", "cpu")
    return lambda name, *args: cli("fit", "--config", CONF / f"{name}.yaml", *options, *args)


@pytest.fixture
def files(tmp_path):
    fashion_files(tmp_path / "fashion", train=200, test=40)
    return tmp_path / "fashion"


def test_fashion(styled_fit, cli, files, runs):
    options = ("--data.root", files, "--data.num_workers", "0", "--data.train_samples", "100")
    outcome = styled_fit("fashion", *options, "--data.held_back", "polarity", "noise", "--test", "true")
    assert outcome.code == 0, outcome.err
    saved = yaml.safe_load((runs / "fashion/config.yaml").read_text())
    assert saved["data"]["held_back"] == ["polarity", "noise"] and len(saved["data"]["styles"]) == 6
    rows = rows_of(runs / "fashion/metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3", "4", "5"]
    outcome = cli("predict", "--ckpt_path", runs / "fashion", "--trainer.limit_predict_batches", "null")
    assert outcome.code == 0 and "40 predictions" in outcome.out, outcome.err
    predictions = rows_of(runs / "fashion/predictions.csv")
    assert {row["true"] for row in predictions} == set(
        "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
    )
    exported = cli(
        "export", "--ckpt_path", runs / "fashion", "--output", runs / "exported", "--format", "safetensors"
    )
    assert exported.code == 0, exported.err
    config = json.loads((runs / "exported/config.json").read_text())
    assert config["class_names"][1] == "Trouser" and config["resize"] == [16, 16]


def test_the_control(styled_fit, runs):
    outcome = styled_fit("digits_control", "--test", "true")
    assert outcome.code == 0, outcome.err
    stored = torch.load(runs / "digits_control/checkpoints/best.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["num_classes"] == 14
    report = (runs / "digits_control/report.html").read_text()
    assert all(name in report for name in ("digit 0", "digit 9", "contrast 1", "contrast 4"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_whatever_the_workers(styled_fit, runs, workers):
    # A rate that does not depend on the length of the run.
    options = ["--model.schedule", "constant", "--data.held_back", "blur"]
    assert styled_fit("digits", *options, "--name", "whole").code == 0
    half = [*options, "--name", "half", "--resume", "auto"]
    assert styled_fit("digits", *half, "--trainer.max_epochs", "1").code == 0
    resumed = styled_fit("digits", *half, "--data.num_workers", workers)
    assert resumed.code == 0 and "after epoch 1" in resumed.out, resumed.err
    whole, half = (
        torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "half")
    )
    assert whole.keys() == half.keys() and all(torch.equal(whole[key], half[key]) for key in whole)


@pytest.mark.parametrize(
    ("given", "styles"),
    [
        (["contrast", "blur"], ["contrast", "blur"]),
        (["contrast"], ["contrast"]),
        (["[contrast, blur]"], ["contrast", "blur"]),
        (["[]"], []),
        (["null"], None),
    ],
)
def test_lists_are_words_or_written_out(fit_parser, given, styles):
    built = fit_parser("--config", CONF / "digits.yaml", "--data.styles", *given, "--data.batch_size", "8")
    assert built.datamodule.styles == styles and built.datamodule.batch_size == 8


REFUSED = {
    "--data.styles contrast sepia": "data.styles: expected one of contrast, brightness, colour, polarity, "
    "blur, noise, got 'sepia' (on the command line)",
    "--data.styles contrast --data.held_back blur": "data.held_back: expected some of data.styles "
    "(contrast), got blur",
    "--data.contrast 0.5": "data.contrast: expected none beside data.styles",
    "--data.train_samples 9": "data.train_samples: expected an image for each of 10 classes or more, got 9",
    "--data.train_samples 1169": "expected at most the 1,168 training images that there are, got 1,169",
    "--dataset digits_control": "data.styles",  # the control has its own
    "--dataset fashion --data.root /nowhere": "got 0 of 4: apt-get install dataset-fashion-mnist",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_makes_no_sense_is_one_line(styled_fit, options):
    outcome = styled_fit("digits", *options.split())
    assert outcome.code == 2 and REFUSED[options] in outcome.err and "Traceback" not in outcome.err
