"""What the ranks of test_family_ddp.py do; a module of its own, so that spawned processes can import it."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from exemplar_norm import record_ratios, set_sparsity
from tests.family.family_cases import FAMILY, family_case

STEPS = 3
KINDS = [*FAMILY, "ssn-one-hot"]


class Net(nn.Module):
    """A convolution, the layer, and a head that uses every output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, dtype=torch.float64)
        self.norm = family_case(kind.removesuffix("-one-hot")).build()
        self.head = nn.Linear(6, 2, dtype=torch.float64)
        with torch.no_grad():
            for p in self.norm.parameters():  # away from saturated gates
                p /= 2
        if kind == "ssn-one-hot":
            set_sparsity(self, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu_(self.norm(self.conv(x))).square().mean((2, 3)))


def network(kind: str) -> Net:
    """The same network on every call."""
    torch.manual_seed(5)
    return Net(kind)


def batches(rank: int) -> list[Tensor]:
    """This rank's batch of every step."""
    torch.manual_seed(10 + rank)
    return [torch.randn(3, 3, 6, 5, dtype=torch.float64) for _ in range(STEPS)]


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train(kind: str, rank: int) -> dict[str, object]:
    """Three steps under DDP: final parameters, whether each had a gradient in every step, the ratios."""
    model = DistributedDataParallel(network(kind), find_unused_parameters=False)
    sgd, has_gradient = optimizer(model), []
    for x in batches(rank):
        sgd.zero_grad(set_to_none=True)
        with record_ratios(model) as ratios:
            model(x).square().sum().backward()
        has_gradient.append({name: p.grad is not None for name, p in model.module.named_parameters()})
        sgd.step()
    parameters = {name: p.detach() for name, p in model.module.named_parameters()}
    return {"parameters": parameters, "has_gradient": has_gradient, "ratios": ratios}


def jobs():
    """One training for each kind of layer."""
    return {kind: partial(train, kind) for kind in KINDS}
