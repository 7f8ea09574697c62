"""What the ranks of test_report_mistakes.py do; a module, so that spawned processes can import it."""

import torch

from tasks.classification.mistakes import EvaluationRecord

CLASSES, EXAMPLES, BATCH = 5, 203, 8


def evaluation():
    """Logits (N, classes), labels (N), indices (N); rounded, so that many probabilities are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(EXAMPLES, CLASSES, generator=generator).mul(2).round().div(2)
    labels = torch.randint(CLASSES - 1, (EXAMPLES,), generator=generator)  # nothing is of the last class
    return logits, labels, torch.arange(EXAMPLES)


def outcome(rank, world):
    """The outcome of the whole evaluation, of which this rank sees every `world`-th example."""
    own = [part[rank::world] for part in evaluation()]
    record = EvaluationRecord(CLASSES)
    for split in ("val", "test"):  # the first must leave nothing behind
        record.start(split)
        for batch in zip(*(part.split(BATCH) for part in own), strict=True):
            record.update(*batch)
        record.finish()
    return record.outcome


def one_sees_nothing(rank):
    """Rank 0 sees everything, the others nothing."""
    record = EvaluationRecord(CLASSES)
    record.start("test")
    if rank == 0:
        record.update(*evaluation())
    record.finish()
    return record.outcome


def jobs():
    return {"shared": lambda rank: outcome(rank, 2), "one_sees_nothing": one_sees_nothing}
