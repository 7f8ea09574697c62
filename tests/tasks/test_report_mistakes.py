"""Confusion matrix and most confident mistakes, against loops over all examples, on one and two processes."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tasks.classification.mistakes import EvaluationRecord
from tests.family.rank_jobs import run_on_ranks
from tests.tasks import mistake_jobs
from tests.tasks.mistake_jobs import CLASSES, EXAMPLES, evaluation, outcome

K, PER_CLASS = 12, 4


def oracle():
    """Wrong predictions (−probability, index, predicted, true), sorted; counts by (true, predicted)."""
    wrong, counts = [], Counter()
    for logits, true, index in zip(*(part.tolist() for part in evaluation()), strict=True):
        predicted = logits.index(max(logits))
        probability = 1 / sum(math.exp(value - max(logits)) for value in logits)
        counts[true, predicted] += 1
        if predicted != true:
            # float32 of the layer: equal probabilities must be equal here too, hence the rounding.
            wrong.append((-round(probability, 5), index, predicted, true))
    return sorted(wrong), counts


def check(found):
    wrong, counts = oracle()
    assert found.split == "test" and found.k == K
    assert {place: n for place, n in np.ndenumerate(found.confusion) if n} == dict(counts)
    expected = wrong[:K]
    for true in range(CLASSES):
        expected += [row for row in wrong if row[3] == true][:PER_CLASS]
    expected = sorted(set(expected))
    assert [(m.example, m.predicted, m.true) for m in found.mistakes] == [row[1:] for row in expected]
    # Float32 softmax against float64, and five digits of the oracle.
    assert [-m.probability for m in found.mistakes] == pytest.approx([row[0] for row in expected], abs=1e-5)


def test_one_process():
    check(outcome(rank=0, world=1))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(mistake_jobs.jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("job", ["shared", "one_sees_nothing"])
def test_two_processes_find_what_one_finds(ranks, job):
    for found in ranks(job):
        check(found)


def test_accuracy_by_class():
    found = outcome(rank=0, world=1)
    _, counts = oracle()
    for true in range(CLASSES - 1):
        total = sum(counts[true, predicted] for predicted in range(CLASSES))
        assert found.totals[true] == total
        assert found.accuracy[true] == pytest.approx(counts[true, true] / total, rel=1e-12)
    assert found.totals.sum() == EXAMPLES
    assert np.isnan(found.accuracy[-1]), "a class without images has no accuracy"


def test_a_network_that_diverged_makes_mistakes_too():
    record = EvaluationRecord(3)
    record.start("val")
    record.update(torch.full((2, 3), math.nan), torch.tensor([1, 2]), torch.tensor([0, 1]))
    record.finish()
    assert [mistake.probability for mistake in record.outcome.mistakes] == [0.0, 0.0]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_few_mistakes(wrong):
    record = EvaluationRecord(3)
    record.start("val")
    labels = torch.zeros(4).long()
    logits = torch.nn.functional.one_hot(labels, 3).float()
    logits[:wrong] = torch.tensor([0.0, 0.0, 1.0])
    record.update(logits, labels, torch.arange(4))
    record.finish()
    probability = pytest.approx(math.e / (math.e + 2), abs=1e-6)
    assert record.outcome.mistakes == [(example, 2, 0, probability) for example in range(wrong)]


def test_nothing_is_stored_in_checkpoints():
    record = EvaluationRecord(3)
    record.update(*(part[:4] for part in (torch.eye(4)[:, :3], torch.zeros(4).long(), torch.arange(4))))
    assert record.state_dict() == {}
