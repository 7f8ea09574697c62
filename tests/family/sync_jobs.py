"""What the ranks of test_sync.py do; a module of its own, so that spawned processes can import it."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exemplar_norm import NORMS, convert_norm, sync_norm
from exemplar_norm.batch import BatchNorm
from tests.family.family_cases import WITH_BN, family_case
from tests.layers.layer_cases import randomise

CHANNELS = 6
# Shapes (batch, *spatial) on each rank, step by step.
SHAPES = {
    "equal": [((3, 4, 3), (3, 4, 3))],
    "batch-sizes-differ": [((1, 4, 3), (4, 4, 3))],
    "map-sizes-differ": [((2, 4, 3), (2, 2, 5))],
    "both-differ": [((3, 2, 2), (1, 5, 3))],
    "empty-rank": [((3, 4, 3), (0, 4, 3))],
    "empty-on-all": [((3, 4, 3), (2, 4, 3)), ((0, 4, 3), (0, 4, 3))],
    "one-value-a-rank": [((1, 1, 1), (1, 1, 1))],
    "one-value-in-all": [((1, 1, 1), (0, 1, 1))],
    "three-steps": [((3, 2, 2), (1, 5, 3)), ((1, 4, 3), (4, 4, 3)), ((2, 4, 3), (2, 2, 5))],
}
MOMENTA = {"0.1": 0.1, "none": None}


@dataclass(frozen=True)
class Check:
    """One comparison: a layer on the ranks' batches."""

    kind: str
    shapes: str
    momentum: str = "0.1"

    def __str__(self) -> str:
        return f"{self.kind}-{self.shapes}-momentum-{self.momentum}"

    def layer(self, sync: bool) -> nn.Module:
        """The same random layer on every call, whatever ran before."""
        torch.manual_seed(len(str(self)))
        case = family_case(
            self.kind,
            channels=CHANNELS,
            options={"momentum": MOMENTA[self.momentum], "sync": sync},
        )
        layer = case.build()
        for p in layer.parameters():  # away from saturated gates
            p.data /= 2
        return layer

    def steps(self) -> list[list[tuple[Tensor, Tensor]]]:
        """For each step, each rank's (x, upstream gradient)."""
        torch.manual_seed(7)
        return [
            [
                tuple(
                    scale * torch.randn(n, CHANNELS, *spatial, dtype=torch.float64) + offset
                    for scale, offset in ((2.0 + rank, 1.5 * rank), (1.0, 0.0))
                )
                for rank, (n, *spatial) in enumerate(shapes)
            ]
            for shapes in SHAPES[self.shapes]
        ]


CHECKS = [Check(kind, shapes) for kind in WITH_BN for shapes in SHAPES] + [
    Check(kind, "three-steps", "none") for kind in WITH_BN
]


def run_check(check: Check, rank: int) -> list[dict[str, Tensor]]:
    """Each step's output, gradients (parameters: this rank's share) and buffers."""
    layer = check.layer(sync=True)
    records = []
    for ranks in check.steps():
        x, upstream = ranks[rank]
        leaf = x.requires_grad_()
        y = layer(leaf)
        leaves = {"x": leaf} | dict(layer.named_parameters())
        grads = torch.autograd.grad(y, list(leaves.values()), upstream, materialize_grads=True)
        records.append(
            {"y": y.detach()}
            | {f"grad.{name}": g for name, g in zip(leaves, grads, strict=True)}
            | {f"buffer.{name}": b.clone() for name, b in layer.named_buffers()}
        )
    return records


class Net(nn.Module):
    """A small BatchNorm network; its map sizes follow the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(4, momentum=None)
        self.bn3 = nn.BatchNorm1d(4, affine=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x)).mean((2, 3))
        return self.fc(self.bn3(x))


def network() -> Net:
    """The same random network on every call."""
    torch.manual_seed(3)
    return randomise(Net().double())


def network_batches() -> list[Tensor]:
    """Unequal shares of one batch."""
    torch.manual_seed(4)
    return list(torch.randn(7, 3, 9, 9, dtype=torch.float64).split([2, 5]))


NETWORKS = {
    "native": lambda: sync_norm(network()),
    "converted": lambda: sync_norm(convert_norm(network(), "en")),
    "converted-twice-synced": lambda: sync_norm(sync_norm(convert_norm(network(), "en"))),
}


def run_network(name: str, rank: int) -> dict[str, Tensor]:
    """Output, gradients by name and buffers of one training step and the output of one evaluation."""
    return train_and_evaluate(NETWORKS[name](), network_batches()[rank])


def train_and_evaluate(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    leaf = x.clone().requires_grad_()
    y = net(leaf)
    (y * torch.arange(1.0, 6.0, dtype=torch.float64)).square().sum().backward()
    record = {"y": y.detach(), "grad.x": leaf.grad}
    record |= {f"grad.{n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    record |= {f"buffer.{n}": b.clone() for n, b in net.named_buffers()}
    with torch.no_grad():
        record["evaluation"] = net.eval()(x)
    return record


def run_compiled(rank: int) -> dict[str, Tensor]:
    """A synchronised layer under torch.compile, without graph breaks."""
    check = Check("en", "both-differ")
    layer = torch.compile(check.layer(sync=True), fullgraph=True, backend="aot_eager")
    x, upstream = check.steps()[0][rank]
    leaf = x.requires_grad_()
    y = layer(leaf)
    y.backward(upstream)
    return {"y": y.detach(), "grad.x": leaf.grad}


def run_subgroup(rank: int) -> Tensor:
    """A process group of one rank each: statistics must stay local."""
    groups = [torch.distributed.new_group([r]) for r in range(2)]
    layer = BatchNorm(CHANNELS, sync=True, process_group=groups[rank], dtype=torch.float64)
    return layer(Check("bn", "both-differ").steps()[0][rank][0])


def run_evaluation(rank: int) -> dict[str, Tensor]:
    """In evaluation nothing is exchanged: only rank 0 runs, and must not wait for the other."""
    if rank:
        return {}
    layers = {kind: NORMS[kind](CHANNELS, sync=True, dtype=torch.float64).eval() for kind in WITH_BN[:-1]}
    x = Check("bn", "equal").steps()[0][0][0]
    return {kind: layer(x).detach() for kind, layer in layers.items()}


def jobs():
    """All of the above, for one launch."""
    found = {str(check): partial(run_check, check) for check in CHECKS}
    found |= {f"network-{name}": partial(run_network, name) for name in NETWORKS}
    return found | {"subgroup": run_subgroup, "evaluation": run_evaluation, "compiled": run_compiled}
