"""DistributedDataParallel without find_unused_parameters, against gradients averaged by hand."""

import pytest
import torch

from tests.family import ddp_jobs
from tests.family.rank_jobs import run_on_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(ddp_jobs.jobs, tmp_path_factory.mktemp("ddp"))


def train_by_hand(kind):
    """Two replicas in one process; their gradients are averaged as DDP does."""
    nets = [ddp_jobs.network(kind) for _ in range(2)]
    optimizers = [ddp_jobs.optimizer(net) for net in nets]
    for step in range(ddp_jobs.STEPS):
        for rank, net in enumerate(nets):
            net.zero_grad()
            net(ddp_jobs.batches(rank)[step]).square().sum().backward()
        for parameters in zip(*(net.parameters() for net in nets), strict=True):
            mean = sum(p.grad for p in parameters) / 2
            for p in parameters:
                p.grad = mean.clone()
        for sgd in optimizers:
            sgd.step()
    return dict(nets[0].named_parameters())


@pytest.mark.parametrize("kind", ddp_jobs.KINDS)
def test_training_equals_averaged_gradients(ranks, kind):
    want, start = train_by_hand(kind), dict(ddp_jobs.network(kind).named_parameters())
    for record in ranks(kind):
        assert all(all(step.values()) for step in record["has_gradient"])
        for name, value in want.items():
            # float64; three steps of one arithmetic, summed in another order
            torch.testing.assert_close(record["parameters"][name], value.detach(), rtol=1e-10, atol=1e-10)
    moved = {name for name, p in start.items() if not torch.equal(p, want[name])}
    fixed = {"norm.mean_weight", "norm.var_weight"} if kind == "ssn-one-hot" else set()
    assert moved == set(want) - fixed


def test_ratios_are_recorded_under_ddp(ranks):
    for record in ranks("en"):
        (name,) = record["ratios"]
        assert name == "norm"
        ratio = record["ratios"][name]
        assert ratio.shape == (3, 4)
        torch.testing.assert_close(ratio.sum(1), torch.ones(3, dtype=torch.float64))
        assert ratio.std(0).max() > 1e-6  # one for each sample
    assert not ranks("sn")[0]["ratios"]
