"""Losses against their definitions in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tasks.segmentation.labels import IGNORE
from tasks.segmentation.losses import SegmentationLoss

# float32 sums over some hundred pixels.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, 12, 9, generator=generator)
    masks = torch.randint(0, 5, (2, 12, 9), generator=generator)
    masks[torch.rand(2, 12, 9, generator=generator) < 0.2] = IGNORE
    return logits.requires_grad_(), masks


def surprises(logits, masks):
    """−log p of the true class of each labelled pixel, in float64, and the class."""
    log_p = logits.detach().double().numpy()
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    n, y, x = np.nonzero(masks.numpy() != IGNORE)
    true = masks.numpy()[n, y, x]
    return -log_p[n, true, y, x], true


def test_cross_entropy_is_the_mean_over_labelled_pixels(batch):
    expected = surprises(*batch)[0].mean()
    np.testing.assert_allclose(SegmentationLoss()(*batch).item(), expected, **CLOSE)


def test_gradients_are_those_of_pytorch(batch):
    logits, masks = batch
    weights = [0.5, 1.0, 2.0, 0.0, 3.0]
    (ours,) = torch.autograd.grad(SegmentationLoss(weights)(*batch), logits)
    theirs = F.cross_entropy(logits.double(), masks, torch.tensor(weights).double(), ignore_index=IGNORE)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, expected, **CLOSE)
    assert not ours.movedim(1, -1)[masks == IGNORE].any()


def test_class_weights_weigh_pixels(batch):
    weights = np.array([0.5, 1.0, 2.0, 0.0, 3.0])
    surprise, true = surprises(*batch)
    expected = (weights[true] * surprise).sum() / weights[true].sum()
    np.testing.assert_allclose(SegmentationLoss(weights.tolist())(*batch).item(), expected, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"ohem": 0.7}, {"dice": 1.0}, {"class_weights": [1.0, 2, 3, 4, 5]}])
def test_a_batch_without_labels_is_zero_with_gradients(batch, options):
    logits, masks = batch
    loss = SegmentationLoss(**options)(logits, torch.full_like(masks, IGNORE))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.any()


@pytest.mark.parametrize(("threshold", "kept"), [(0.7, 0), (0.1, 0), (0.1, 20), (0.05, 60), (0.7, 1000)])
def test_ohem_takes_the_pixels_of_low_probability(batch, threshold, kept):
    """As mmsegmentation's OHEMPixelSampler: sorted[min(kept · N, n − 1)] or more is the threshold."""
    surprise, _ = surprises(*batch)
    probability = np.exp(-surprise)
    number = 2 * kept
    hard = probability < threshold
    if number < len(probability):
        hard = probability < max(np.sort(probability)[number], threshold)
    else:
        hard[:] = True
    assert 0 < hard.sum() >= min(number, len(probability))
    loss = SegmentationLoss(ohem=threshold, ohem_min_kept=kept)(*batch)
    np.testing.assert_allclose(loss.item(), surprise[hard].mean(), **CLOSE)


def test_dice_is_mixed_in(batch):
    logits, masks = batch
    p = logits.detach().double().softmax(1).numpy()
    labelled = (masks != IGNORE).numpy()
    dice = []
    for k in range(5):
        true = (masks == k).numpy()
        overlap = (p[:, k] * true).sum()
        dice.append(1 - 2 * overlap / ((p[:, k] * labelled).sum() + true.sum()))
    expected = surprises(*batch)[0].mean() + 0.5 * np.mean(dice)
    np.testing.assert_allclose(SegmentationLoss(dice=0.5)(*batch).item(), expected, **CLOSE)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 2, 400, 400, dtype=torch.bfloat16)
    loss = SegmentationLoss()(logits, torch.zeros(1, 400, 400).long())
    assert loss.item() == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1.0, -1.0]}, "class_weights: expected numbers ≥ 0"),
        ({"class_weights": [0.0, 0.0]}, "class_weights: expected numbers ≥ 0, not all 0"),
        ({"ohem": 1.5}, "ohem: expected a probability"),
        ({"ohem_min_kept": -1}, "ohem_min_kept: expected a number ≥ 0"),
        ({"dice": -0.1}, "dice: expected a number ≥ 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(**options)
