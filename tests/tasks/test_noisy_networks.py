"""Co-teaching and DivideMix: selections, targets and losses of two networks, by hand and by loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.noisy_labels.co_teaching import co_teach, remember_rate, small_loss
from tasks.noisy_labels.divide_mix import (
    clean_probability,
    confidence_penalty,
    divide_mix_loss,
    guess,
    mix_match,
    ramp,
    refine,
    sharpen,
)


def test_remember_rate_by_hand():
    rates = [remember_rate(epoch, forget_rate=0.4, gradual_epochs=5) for epoch in range(8)]
    assert rates == pytest.approx([1, 0.92, 0.84, 0.76, 0.68, 0.6, 0.6, 0.6])
    assert remember_rate(100, 0.0) == 1.0


def test_small_losses():
    loss = torch.tensor([3.0, 0.5, float("nan"), 1.0, 2.0], requires_grad=True)
    assert small_loss(loss, 0.6).tolist() == [1, 3, 4]
    assert small_loss(loss, 0.59).tolist() == [1, 3]
    assert small_loss(loss, 0.0).tolist() == [1]
    assert small_loss(loss, 1.0).tolist() == [1, 3, 4, 0, 2]
    # 0.7 · 10 = 7.000000000000001 and 0.29 · 100 = 28.999999999999996
    assert len(small_loss(torch.arange(10.0), 0.7)) == 7 and len(small_loss(torch.arange(100.0), 0.29)) == 29
    assert len(small_loss(torch.arange(5.0), remember_rate(9, 0.8, 3))) == 1


def test_each_network_learns_from_what_the_other_chose():
    loss_a, loss_b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([4.0, 1.0, 3.0, 2.0])
    for_a, for_b = co_teach(loss_a, loss_b, 0.5)
    assert for_a.tolist() == [1, 3] and for_b.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remember_rate(-1, 0.4), r"epoch: expected a number in \[0, inf\], got -1"),
        (lambda: remember_rate(0, 1.4), "forget_rate: expected"),
        (lambda: remember_rate(0, 0.4, 0), r"gradual_epochs: expected a number in \(0, inf\], got 0"),
        (lambda: small_loss(torch.zeros(3), 1.5), "rate: expected"),
        (lambda: small_loss(torch.zeros(0), 0.5), r"losses: expected a shape \(N\) with N ≥ 1"),
        (lambda: co_teach(torch.zeros(3), torch.zeros(4), 0.5), r"expected equal shapes, got \(3,\), \(4,\)"),
        (lambda: sharpen(torch.ones(1, 2), 0), "temperature: expected"),
        (lambda: clean_probability(np.array([1.0])), "losses: expected two finite numbers or more"),
        (lambda: clean_probability(np.array([1.0, np.inf])), "losses: expected two finite numbers"),
        (lambda: mix_match(torch.zeros(2, 1), torch.zeros(2, 3), 0), "alpha: expected a positive number"),
        (lambda: divide_mix_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0, 1), "1 to N labelled rows"),
        (lambda: divide_mix_loss(torch.zeros(2, 3), torch.zeros(2, 2), 1, 1), "batch: expected logits"),
        (lambda: ramp(1, 0, 25, 0), "length: expected"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_mixture_gives_the_posterior():
    generator = np.random.default_rng(0)
    right, wrong = generator.normal(1, 0.3, 6000), generator.normal(4, 0.8, 4000)
    losses = np.concatenate([right, wrong])
    got = clean_probability(losses)

    def density(mean, deviation):
        return np.exp(-(((losses - mean) / deviation) ** 2) / 2) / deviation

    # The fit adds 5 · 10⁻⁴ to each variance of the losses scaled to [0, 1].
    added = 5e-4 * np.ptp(losses) ** 2
    low = 0.6 * density(1, math.sqrt(0.3**2 + added))
    high = 0.4 * density(4, math.sqrt(0.8**2 + added))
    want = low / (low + high)
    # Means and deviations from 4000 draws or more are right to 2 %, and the fit stops at a gain of 10⁻²; that
    # shifts the place where the posterior falls from 1 to 0, about which few losses lie.
    assert np.abs(got - want).mean() < 0.005
    assert ((got > 0.5) != (want > 0.5)).mean() < 0.005
    assert np.array_equal(got, clean_probability(losses))
    np.testing.assert_allclose(got, clean_probability(10 * losses - 7), atol=1e-9)  # scale and shift
    assert np.array_equal(clean_probability(np.full(5, 2.0)), np.ones(5))


def test_sharpening_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    want = torch.tensor([[25, 9, 4]], dtype=torch.float64) / 38
    torch.testing.assert_close(sharpen(p), want)
    torch.testing.assert_close(sharpen(p, 1.0), p)
    # Low temperatures: all on the largest, where (1/1000)^1000 underflows.
    flat = torch.full((1, 1000), 1e-3)
    flat[0, 3] += 1e-3
    assert sharpen(flat, 1e-3).argmax() == 3 and sharpen(flat, 1e-3).sum() == 1


def test_targets_by_loops():
    views = [torch.softmax(torch.randn(3, 4, dtype=torch.float64), 1).requires_grad_() for _ in range(4)]
    labels, clean = F.one_hot(torch.tensor([1, 0, 3]), 4).double(), torch.tensor([1.0, 0.3, 0.0])
    refined, guessed = refine(labels, clean.double(), views[:2]), guess(views, 0.25)
    for n in range(3):
        w = clean[n].item()
        mean = [sum(view[n, c].item() for view in views[:2]) / 2 for c in range(4)]
        powers = [(w * labels[n, c].item() + (1 - w) * mean[c]) ** 2 for c in range(4)]
        torch.testing.assert_close(refined[n].tolist(), [power / sum(powers) for power in powers])
        powers = [(sum(view[n, c].item() for view in views) / 4) ** 4 for c in range(4)]
        torch.testing.assert_close(guessed[n].tolist(), [power / sum(powers) for power in powers])
    assert not refined.requires_grad and not guessed.requires_grad
    assert torch.equal(refined[0], labels[0])


def test_rows_stay_nearer_to_themselves():
    inputs, targets = torch.eye(6), torch.eye(6)
    for _ in range(20):
        mixed, mixed_targets = mix_match(inputs, targets, 0.5)
        assert torch.equal(mixed, mixed_targets)  # inputs and targets are blended alike
        assert (mixed.diagonal() >= 0.5).all()
        torch.testing.assert_close(mixed.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.sum(0), torch.ones(6))  # partners are a permutation


def loss_by_loops(logits, q, labelled, weight):
    rows, classes = logits.shape
    p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits.tolist()]
    x = -sum(q[n, c].item() * math.log(p[n][c]) for n in range(labelled) for c in range(classes)) / labelled
    rest = [(p[n][c] - q[n, c].item()) ** 2 for n in range(labelled, rows) for c in range(classes)]
    u = sum(rest) / len(rest) if rest else 0.0
    means = [sum(row[c] for row in p) / rows for c in range(classes)]
    penalty = sum(math.log(1 / classes / mean) / classes for mean in means)
    return x, u, penalty, x + weight * u + penalty


@pytest.mark.parametrize("labelled", [2, 5])
def test_the_loss_by_loops(labelled):
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(torch.randn(5, 3, dtype=torch.float64), 1)
    got = divide_mix_loss(logits, q, labelled, 2.5)
    torch.testing.assert_close([term.item() for term in got], list(loss_by_loops(logits, q, labelled, 2.5)))
    # gradcheck's own tolerances, for central differences in float64
    assert torch.autograd.gradcheck(lambda z: divide_mix_loss(z, q, labelled, 2.5).total, (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_at_extreme_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    got = divide_mix_loss(logits, torch.eye(3)[:2], 1, 1.0)
    assert got.total.dtype == torch.float32 and got.total.isfinite()
    got.total.backward()
    assert logits.grad.isfinite().all()


def test_ramp_by_hand():
    assert [ramp(epoch, 10, 25.0) for epoch in (0, 10, 14, 26, 100)] == [0, 0, 6.25, 25, 25]


def test_confidence_penalty_is_the_negative_entropy():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(confidence_penalty(logits), torch.tensor([-math.log(4), 0.0]))


def test_one_step_trains_one_network():
    a, b, x, u = nn.Linear(5, 3), nn.Linear(5, 3), torch.randn(4, 5), torch.randn(3, 5)
    labels, clean = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float(), torch.full((4,), 0.8)
    p = lambda net, rows: torch.softmax(net(rows), 1)  # noqa: E731
    targets_x = refine(labels, clean, [p(a, x), p(a, x + 0.1)])
    targets_u = guess([p(net, view) for net in (a, b) for view in (u, u + 0.1)])
    rows = torch.cat([x, x + 0.1, u, u + 0.1])
    mixed, targets = mix_match(rows, torch.cat([targets_x, targets_x, targets_u, targets_u]), 4.0)
    divide_mix_loss(a(mixed), targets, 8, ramp(20, 5, 25.0)).total.backward()
    assert a.weight.grad.abs().sum() > 0 and b.weight.grad is None
