"""The memory of early-learning regularisation: values, checkpoints, and two processes that agree."""

import math

import pytest
import torch

from tasks.noisy_labels.elr import EarlyLearning
from tests.family.rank_jobs import run_on_ranks
from tests.tasks import memory_jobs
from tests.tasks.memory_jobs import CLASSES, SAMPLES, STEPS


def clamped(row):
    powers = [math.exp(value) for value in row]
    return [min(max(power / sum(powers), 1e-4), 1 - 1e-4) for power in powers]


def by_hand(steps, beta=0.7):
    """The memory after (index, logits) pairs step by step; of pairs with one index the last counts."""
    memory = [[0.0] * CLASSES for _ in range(SAMPLES)]
    for pairs in steps:
        for index, row in dict(pairs).items():
            p = clamped(row)
            memory[index] = [
                beta * old + (1 - beta) * new / sum(p) for old, new in zip(memory[index], p, strict=True)
            ]
    return torch.tensor(memory)


def pairs_of(step):
    return [
        (index, row)
        for rank, indices in enumerate(STEPS[step])
        for index, row in zip(indices, memory_jobs.logits(step, rank).tolist(), strict=True)
    ]


def test_loss_and_gradient():
    loss = EarlyLearning(SAMPLES, CLASSES, beta=0.6, strength=2.5)
    indices, labels = torch.tensor([4, 0]), torch.tensor([2, 1])
    first, second = torch.randn(2, 2, CLASSES, dtype=torch.float64)
    for logits in (first, second):
        loss.remember(logits, indices)
    steps = [list(zip(indices.tolist(), rows.tolist(), strict=True)) for rows in (first, second)]
    memory = by_hand(steps, beta=0.6)
    torch.testing.assert_close(loss.memory_MC, memory, rtol=1e-6, atol=1e-7)  # stored in float32

    def value(logits):
        losses = []
        for row, index, y in zip(logits.tolist(), indices.tolist(), labels.tolist(), strict=True):
            p = clamped(row)
            agreement = sum(a * b for a, b in zip(p, memory[index].tolist(), strict=True))
            losses.append(-math.log(p[y]) + 2.5 * math.log(1 - agreement))
        return torch.tensor(losses, dtype=torch.float64)

    logits = second.clone().requires_grad_()
    losses = loss(logits, labels, indices)
    # The memory's float32 is the only rounding above 1e-15.
    torch.testing.assert_close(losses, value(second), rtol=1e-6, atol=1e-6)
    losses.sum().backward()
    step, want = 1e-5, torch.zeros_like(second)
    for n in range(2):
        for c in range(CLASSES):
            shift = torch.zeros_like(second)
            shift[n, c] = step
            want[n, c] = (value(second + shift) - value(second - shift)).sum() / (2 * step)
    torch.testing.assert_close(logits.grad, want, rtol=1e-5, atol=1e-6)


def test_the_loss_alone_changes_nothing():
    loss = EarlyLearning(SAMPLES, CLASSES)
    loss(torch.randn(2, CLASSES), torch.tensor([0, 1]), torch.tensor([3, 4]))
    assert not loss.memory_MC.any()


def test_without_indices_it_refuses():
    with pytest.raises(ValueError, match=r"indices: expected the numbers \(N\) of the samples, got None"):
        EarlyLearning(SAMPLES, CLASSES)(torch.zeros(2, CLASSES), torch.tensor([0, 1]))


def test_checkpoint(tmp_path):
    loss = EarlyLearning(SAMPLES, CLASSES)
    loss.remember(torch.randn(3, CLASSES), torch.tensor([1, 8, 5]))
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other = EarlyLearning(SAMPLES, CLASSES)
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert torch.equal(other.memory_MC, loss.memory_MC)
    other.remember(torch.randn(1, CLASSES), torch.tensor([0]))
    assert not torch.equal(other.memory_MC, loss.memory_MC)  # a copy
    message = r"memory of the loss: expected \(samples, classes\) \(5, 3\), got \(9, 3\)"
    with pytest.raises(ValueError, match=message):
        EarlyLearning(5, CLASSES).load_state_dict(loss.state_dict())


def test_half_precision_is_stored_and_survives_casts():
    loss = EarlyLearning(SAMPLES, CLASSES, memory="float16").float()
    logits = memory_jobs.logits(0, 0)
    for _ in range(20):
        loss.remember(logits, torch.tensor([0, 1, 2]))
    assert loss.memory_MC.dtype == torch.float16
    want = by_hand([list(zip(range(3), logits.tolist(), strict=True))] * 20)
    # An average of one value: each step rounds by 2⁻¹¹ relative, of which 1/(1 − β) remain.
    torch.testing.assert_close(loss.memory_MC.float(), want, rtol=2**-11 / 0.3, atol=1e-7)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(memory_jobs.jobs, tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("memory", ["float32", "float16"])
def test_two_processes_hold_one_memory(ranks, memory):
    first, second = ranks(memory)
    assert torch.equal(first, second)
    want = by_hand([pairs_of(step) for step in range(len(STEPS))])
    # float32 arithmetic; in float16 four steps of one rounding each
    tolerance = 1e-6 if memory == "float32" else 2**-11 / 0.3
    torch.testing.assert_close(first.float(), want, rtol=tolerance, atol=tolerance)


def test_ddp_does_not_send_the_memory(ranks):
    for rank, memory in enumerate(ranks("wrapped")):
        assert (memory == rank).all()
