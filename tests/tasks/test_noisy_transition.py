"""Forward correction's matrix: given, estimated from anchors, and refused."""

import pytest
import torch

from tasks.noisy_labels.transition import ForwardCorrection, estimate_transition

TRANSITION = [[0.7, 0.1, 0.1, 0.1], [0.0, 1.0, 0.0, 0.0], [0.25, 0.0, 0.75, 0.0], [0.1, 0.2, 0.3, 0.4]]
CLASSES = len(TRANSITION)


def test_a_hopeless_label_keeps_its_gradient_under_forward_correction():
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = ForwardCorrection(CLASSES)(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == 1e4
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0, 0.0]]


def test_anchors_give_the_transition_matrix():
    # Samples of class c predict row c of T; a tenth is unsure and none surer, so the anchors are exact.
    rows = torch.tensor(TRANSITION, dtype=torch.float64)
    sure = rows.repeat_interleave(90, 0)
    unsure = 0.5 * rows.repeat_interleave(10, 0) + 0.5 / CLASSES
    estimate = estimate_transition(torch.cat([unsure, sure]))
    torch.testing.assert_close(estimate, rows)


def test_the_percentile_skips_outliers():
    share = torch.linspace(0.0, 0.99, 100, dtype=torch.float64)
    p = torch.cat([torch.stack([share, 1 - share], 1), torch.stack([1 - share, share], 1)])
    # p_0 falls as 1.00, 0.99, 0.99, 0.98 …; 97 skips 3 % of the 100 samples that a class has on average.
    assert estimate_transition(p, 100.0)[0, 0] == 1.0
    assert estimate_transition(p, 97.0)[0, 0] == pytest.approx(0.98)


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        ([[1.0, 0.0]], r"expected a matrix \(2, 2\), got a shape \(1, 2\)"),
        ([[0.5, 0.4], [0.0, 1.0]], "sum to 1, got sums from 0.9 to 1 and a least element of 0"),
        ([[1.5, -0.5], [0.0, 1.0]], "least element of -0.5"),
        ([[float("nan"), 1.0], [0.0, 1.0]], "got sums from nan"),
        ([[1.0, 0.0], [1.0, 0.0]], r"positive number in each column, got none in \[1\]"),
    ],
)
def test_bad_transitions(transition, message):
    with pytest.raises(ValueError, match=message):
        ForwardCorrection(2, transition)


@pytest.mark.parametrize("percentile", [0.0, 101.0, float("nan")])
def test_bad_percentile(percentile):
    with pytest.raises(ValueError, match=r"percentile: expected a number in \(0, 100\]"):
        estimate_transition(torch.eye(3), percentile)


def test_bad_probabilities():
    with pytest.raises(ValueError, match=r"expected rows \(N, C\) that sum to 1"):
        estimate_transition(torch.ones(3, 3))


def test_forward_correction_takes_no_probabilities():
    with pytest.raises(ValueError, match="ForwardCorrection: expected class indices"):
        ForwardCorrection(3)(torch.zeros(4, 3), torch.zeros(4, 3))
