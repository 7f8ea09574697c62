"""Losses for noisy labels against loops in float64, their limits, extreme logits and low precision."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.noisy_labels.losses import (
    LOSSES,
    CrossEntropy,
    GeneralizedCrossEntropy,
    LabelSmoothing,
    NormalizedReverse,
    SoftBootstrapping,
    SymmetricCrossEntropy,
    build_loss,
)
from tasks.noisy_labels.mixing import Mixing, blend, mixed_loss, mixup
from tasks.noisy_labels.transition import ForwardCorrection

SAMPLES, CLASSES = 7, 4
TRANSITION = [[0.7, 0.1, 0.1, 0.1], [0.0, 1.0, 0.0, 0.0], [0.25, 0.0, 0.75, 0.0], [0.1, 0.2, 0.3, 0.4]]


def smoothing(p, y):
    return -sum((0.9 * (c == y) + 0.1 / len(p)) * math.log(p[c]) for c in range(len(p)))


def bootstrapping(p, y):
    return -sum((0.95 * (c == y) + 0.05 * p[c]) * math.log(p[c]) for c in range(len(p)))


def reverse(p, y, log_zero):
    return -sum(p[c] * (0.0 if c == y else log_zero) for c in range(len(p)))


def normalized(p, y):
    return math.log(p[y]) / sum(math.log(value) for value in p)


# Scalar formulas at the published defaults, from the probabilities of one sample and its label.
ORACLES = {
    "ce": lambda p, y: -math.log(p[y]),
    "label_smoothing": smoothing,
    "bootstrapping": bootstrapping,
    "gce": lambda p, y: (1 - p[y] ** 0.7) / 0.7,
    "sce": lambda p, y: -10 * math.log(p[y]) + reverse(p, y, -4.0),
    "nce_rce": lambda p, y: 50 * normalized(p, y) + 0.1 * reverse(p, y, math.log(1e-4)),
    "forward": lambda p, y: -math.log(sum(p[j] * TRANSITION[j][y] for j in range(len(p)))),
}


def built(name, **options):
    if name == "forward":
        options.setdefault("transition", TRANSITION)
    return build_loss(name, num_classes=CLASSES, num_samples=SAMPLES, options=options)


def batch(dtype=torch.float64):
    return torch.randn(SAMPLES, CLASSES, dtype=dtype) * 3, torch.randint(CLASSES, (SAMPLES,))


def oracle(name, logits, labels):
    losses = []
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(value) for value in row]
        losses.append(ORACLES[name]([power / sum(powers) for power in powers], y))
    return torch.tensor(losses, dtype=torch.float64)


def numeric_gradient(name, logits, labels, step=1e-5):
    gradient = torch.zeros_like(logits)
    for place in range(logits.numel()):
        shift = torch.zeros(logits.numel(), dtype=logits.dtype)
        shift[place] = step
        shift = shift.view_as(logits)
        difference = oracle(name, logits + shift, labels) - oracle(name, logits - shift, labels)
        gradient.view(-1)[place] = difference.sum() / (2 * step)
    return gradient


@pytest.mark.parametrize("name", ORACLES)
def test_values_and_gradients(name):
    logits, labels = batch()
    logits.requires_grad_()
    losses = built(name)(logits, labels, torch.arange(SAMPLES))
    # float64 throughout, but for the matrix of "forward", which is stored in float32
    tolerance = 1e-6 if name == "forward" else 1e-12
    torch.testing.assert_close(losses, oracle(name, logits, labels), rtol=tolerance, atol=tolerance)
    losses.sum().backward()
    # Central differences: errors of step² · f''' and of rounding / step, both about 1e-9; × 50 in NCE+RCE.
    want = numeric_gradient(name, logits.detach(), labels)
    torch.testing.assert_close(logits.grad, want, rtol=1e-5, atol=1e-6)


def test_by_hand():
    # p = (1/2, 1/4, 1/4) and label 0
    logits, label = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.tensor([0])
    value = lambda loss: loss(logits, label).item()  # noqa: E731
    assert value(CrossEntropy()) == pytest.approx(math.log(2))
    assert value(GeneralizedCrossEntropy(q=0.5)) == pytest.approx(2 * (1 - math.sqrt(0.5)))
    assert value(SymmetricCrossEntropy(1, 1, -4)) == pytest.approx(math.log(2) + 4 / 2)
    assert value(NormalizedReverse(1, 0)) == pytest.approx(1 / 5)  # log 2 / (log 2 + 2 log 4)
    assert value(SoftBootstrapping(0)) == pytest.approx(1.5 * math.log(2))
    assert value(LabelSmoothing(1)) == pytest.approx(5 / 3 * math.log(2))
    half = ForwardCorrection(3, [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert value(half) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    "loss",
    [
        GeneralizedCrossEntropy(q=0),
        SoftBootstrapping(beta=1),
        LabelSmoothing(smoothing=0),
        SymmetricCrossEntropy(alpha=1, beta=0),
        ForwardCorrection(CLASSES),
        ForwardCorrection(CLASSES, torch.eye(CLASSES)),
        built("elr", strength=0.0),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_limits_are_cross_entropy(loss):
    logits, labels = batch()
    want = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss(logits, labels, torch.arange(SAMPLES)), want)


def test_other_limits():
    logits, labels = batch()
    ce, p = F.cross_entropy(logits, labels, reduction="none"), torch.softmax(logits, 1)
    half_distance = (p - F.one_hot(labels, CLASSES)).abs().sum(1) / 2
    torch.testing.assert_close(GeneralizedCrossEntropy(q=1)(logits, labels), half_distance)
    # The next term of the expansion in q is q/2 · ce²; without expm1 rounding would be 1e-16 / 1e-9.
    small = GeneralizedCrossEntropy(q=1e-9)(logits, labels)
    torch.testing.assert_close(small, ce, rtol=2e-8, atol=0)
    assert torch.equal(SymmetricCrossEntropy(alpha=3, beta=0)(logits, labels), 3 * ce)
    smoothed = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(LabelSmoothing(0.3)(logits, labels), smoothed)


def test_normalized_term_is_a_share():
    logits = torch.randn(200, CLASSES) * 10
    shares = torch.stack([NormalizedReverse(1, 0)(logits, torch.full((200,), c)) for c in range(CLASSES)])
    assert shares.min() >= 0 and shares.max() <= 1
    torch.testing.assert_close(shares.sum(0), torch.ones(200))


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].soft])
def test_probabilities_give_the_expected_loss(name):
    loss, (logits, _) = built(name), batch()
    q, indices = torch.softmax(torch.randn_like(logits), 1), torch.arange(SAMPLES)
    each = [loss(logits, torch.full((SAMPLES,), c), indices) for c in range(CLASSES)]
    want = sum(q[:, c] * each[c] for c in range(CLASSES))
    torch.testing.assert_close(loss(logits, q, indices), want)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(name, dtype):
    loss = built(name)
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 1e4, 0.0], [0.0] * 4, [1e4] * 4], dtype=dtype)
    indices = torch.arange(4)
    loss.remember(logits, indices)
    for label in range(CLASSES):
        leaf = logits.clone().requires_grad_()
        losses = loss(leaf, torch.full((4,), label), indices)
        assert losses.dtype == torch.float32 and losses.isfinite().all()
        losses.sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_costs_no_more_than_the_logits_precision(name, dtype):
    loss, head, x = built(name), nn.Linear(6, CLASSES), torch.randn(SAMPLES, 6)
    labels, indices = torch.randint(CLASSES, (SAMPLES,)), torch.arange(SAMPLES)
    loss.remember(head(x), indices)
    with torch.autocast("cpu", dtype):
        logits = head(x)
        losses = loss(logits, labels, indices)
    assert logits.dtype == dtype and losses.dtype == torch.float32
    # From the rounded logits on all is float32.
    torch.testing.assert_close(losses, loss(logits.float(), labels, indices), rtol=1e-6, atol=1e-6)
    losses.mean().backward()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_mixing_is_linear_in_the_losses(name):
    loss, (logits, labels), indices = built(name), batch(), torch.arange(SAMPLES)
    loss.remember(logits, indices)
    mixing = Mixing(torch.roll(indices, 1), 0.3)
    got = mixed_loss(loss, logits, labels, mixing, indices)
    want = [
        0.3 * loss(logits[n : n + 1], labels[n : n + 1], indices[n : n + 1])
        + 0.7 * loss(logits[n : n + 1], labels[n - 1].view(1), indices[n - 1].view(1))
        for n in range(SAMPLES)
    ]
    torch.testing.assert_close(got, torch.cat(want))
    if loss.soft and not loss.remembers:
        soft = loss(logits, blend(F.one_hot(labels, CLASSES).double(), mixing))
        torch.testing.assert_close(got, soft)


def test_mixup_blends_images_with_their_partners():
    images = torch.randn(5, 3, 2, 2)
    mixed, (partner, share) = mixup(images, 1.0)
    assert sorted(partner.tolist()) == list(range(5)) and 0 <= share <= 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[partner])
    with pytest.raises(ValueError, match=r"alpha: expected a positive number, got 0"):
        mixup(images, 0)


def test_shares_follow_the_beta_distribution():
    shares = torch.tensor([mixup(torch.zeros(2, 1), 0.5)[1].share for _ in range(2000)])
    # Beta(½, ½): mean ½, variance 1/8; deviations of the estimates from 2000 are 0.008 and 0.002.
    assert abs(shares.mean() - 0.5) < 0.04 and abs(shares.var() - 0.125) < 0.01
