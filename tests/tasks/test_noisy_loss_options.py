"""Names, options and shapes of the losses for noisy labels that are refused."""

import inspect
from typing import get_args

import pytest
import torch

from tasks.errors import UserError
from tasks.noisy_labels.losses import LOSSES, CrossEntropy, LossName, LossOptions, build_loss

CLASSES, SAMPLES = 4, 7


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(4), torch.zeros(4).long(), r"logits: expected a shape \(N, C\), got \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(3).long(), r"class indices \(4,\), got \(3,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 2), r"probabilities \(4, 3\), got \(4, 2\)"),
    ],
)
def test_bad_shapes(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropy()(logits, targets)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gee", {}, r"unknown loss 'gee' \(did you mean gce.*expected ce, label_smoothing"),
        ("ce", {"q": 0.5}, "loss 'ce': expected no options, got 'q'"),
        ("gce", {"beta": 0.5}, "loss 'gce': expected one of q, got 'beta'"),
        ("gce", {"q": 1.5}, r"loss 'gce': q: expected a number in \[0, 1\], got 1.5"),
        ("gce", {"q": float("nan")}, "q: expected"),
        ("sce", {"log_zero": 0.0}, "log_zero: expected a negative number, got 0.0"),
        ("nce_rce", {"alpha": -1.0}, "alpha: expected"),
        ("bootstrapping", {"beta": -0.1}, "beta: expected"),
        ("label_smoothing", {"smoothing": 2.0}, "smoothing: expected"),
        ("elr", {"beta": 1.0}, "beta: expected a number below 1"),
        ("elr", {"strength": -1.0}, "strength: expected"),
        ("elr", {"memory": "int8"}, "memory: expected one of float32, float16, got 'int8'"),
        ("forward", {"transition": [[1.0]]}, r"transition: expected a matrix \(4, 4\)"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message):
        build_loss(name, num_classes=CLASSES, num_samples=SAMPLES, options=options)


def test_the_names_and_options_of_the_command_line_are_those_of_the_losses():
    assert get_args(LossName) == tuple(LOSSES)
    taken = {name for loss in LOSSES.values() for name in inspect.signature(loss).parameters}
    assert set(LossOptions.__annotations__) == taken - {"num_classes", "num_samples"}
