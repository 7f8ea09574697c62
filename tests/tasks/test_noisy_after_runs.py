"""What becomes of a run with noisy labels once it is finished: tested again, exported, its ratios read."""

import pytest
import torch
import yaml

from tasks.classification.load import load_classifier
from tasks.errors import UserError

DIGITS = {
    "dataset": "digits",
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    | {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1},
    "model": {"network": "digits_resnet", "norm": "en", "lr": 0.05, "schedule": "constant"},
    "data": {"batch_size": 32, "image_size": 16, "train_samples": 96, "augment": False}
    | {"noise": {"kind": "symmetric", "rate": 0.4}},
    "wandb": {"mode": "disabled"},
}


@pytest.fixture
def fit(command, tmp_path):
    """fit(*args) → Outcome of a small fit and its run folder."""
    from tasks.noisy_labels.__main__ import main

    config = tmp_path / "digits.yaml"
    config.write_text(yaml.safe_dump(DIGITS))

    def fitted(*args):
        outcome = command(main)("fit", "--config", config, "--runs_dir", tmp_path / "runs", *args)
        assert outcome.code == 0, outcome.err
        return outcome, tmp_path / "runs" / "noisy_labels" / "digits"

    return fitted


def titles(report):
    return [line.split("</h2>")[0] for line in report.read_text().split("<h2>")[1:]]


def test_a_finished_run_that_is_tested_again_keeps_its_report(fit):
    options = ("--test", "true", "--resume", "auto")
    first, folder = fit(*options)
    before = titles(folder / "report.html")
    assert "Noisy labels" in before and "Most suspicious labels" in before
    labels, suspects = ((folder / name).read_bytes() for name in ("noisy_labels.csv", "suspects.csv"))
    again, _ = fit(*options)
    assert "nothing to train" in again.out
    assert titles(folder / "report.html") == before
    assert "could not be drawn" not in (folder / "report.html").read_text()
    assert ((folder / "noisy_labels.csv").read_bytes(), (folder / "suspects.csv").read_bytes()) == (
        labels,
        suspects,
    )
    for told in (
        "wrong labels in training",
        "wrong labels memorised",
        "noise AUROC, ratios of EN",
        "val/top1, best (last)",
    ):
        lines = [[line for line in one.out.splitlines() if told in line] for one in (first, again)]
        assert len(lines[0]) == 1 and lines[0] == lines[1]


def test_the_first_network_of_co_teaching_is_its_classifier(fit, command):
    from tasks.ratios.__main__ import main as ratios

    _, folder = fit("--model.method", "co_teaching")
    state = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    loaded = load_classifier(folder).network.state_dict()
    assert loaded and all(torch.equal(value, state[f"network.{name}"]) for name, value in loaded.items())
    outcome = command(ratios)("--ckpt", folder, "--limit", "8")
    assert outcome.code == 0, outcome.err


def test_two_networks_with_one_prediction_are_refused_in_one_line(fit, command):
    from tasks.ratios.__main__ import main as ratios

    _, folder = fit("--model.method", "divide_mix", "--model.loss_options.warm_up", "1")
    with pytest.raises(UserError, match="expected a classifier of one network, got two"):
        load_classifier(folder)
    outcome = command(ratios)("--ckpt", folder, "--limit", "8")
    assert outcome.code == 0, outcome.err


def test_fewer_digits_are_the_same_in_every_run_and_stay_as_they_are():
    from tasks.noisy_labels.data import Noise, NoisyDigits

    built = [NoisyDigits(train_samples=50, augment=False, noise=Noise(), seed=seed) for seed in (0, 1)]
    for data in built:
        data.setup("fit")
        data.prepare_labels(None)
    names = [[data.sample_name("train", n) for n in range(50)] for data in built]
    assert names[0] == names[1] and len(set(names[0])) == 50
    assert len(built[0].given_labels) == 50 and len(built[0].labels("val")) > 200
    trained, evaluated = (built[0].view(*view).transform for view in (("train", True), ("val", False)))
    assert [type(step) for step in trained.transforms] == [type(step) for step in evaluated.transforms]
    with pytest.raises(ValueError, match=r"data\.train_samples: expected a positive number, got 0"):
        NoisyDigits(train_samples=0)
