"""What the ranks of test_ratio_statistics.py do; a module, so that spawned processes can import it."""

import torch
from torch import nn

from exemplar_norm import NORMS, record_ratios
from tasks.ratios.layers import GateRows, exemplar_layers
from tasks.ratios.survey import RatioSurvey

CLASSES, SAMPLES, BATCH = 4, 37, 5
NORMALIZERS = {"first": ("in", "ln", "bn"), "second": ("ln", "bn"), "third": ("in", "ln", "bn")}


class Net(nn.Module):
    """Three exemplar layers, one of them with other normalizers; gates that say different things."""

    def __init__(self):
        super().__init__()
        for name, normalizers in NORMALIZERS.items():
            setattr(self, name, NORMS["en"](6, normalizers=normalizers, reduction=2, hidden=8))
            nn.init.normal_(getattr(self, name).gate.fc2.weight)
        self.skipped = NORMS["en"](6)

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def network():
    torch.manual_seed(3)
    return Net().eval()


def samples():
    """Inputs (N, 6, 4, 4) of different scale, labels (N); nothing is of the last class."""
    torch.manual_seed(4)
    scale = torch.rand(SAMPLES, 1, 1, 1) * 3
    return torch.randn(SAMPLES, 6, 4, 4) * scale + scale, torch.randint(CLASSES - 1, (SAMPLES,))


def single_ratios():
    """λ (N, K) of each layer, sample by sample."""
    net, rows = network(), {}
    for x in samples()[0]:
        with record_ratios(net) as ratios, torch.no_grad():
            net(x[None])
        for name, ratio in ratios.items():
            rows.setdefault(name, []).append(ratio)
    return {name: torch.cat(parts).double() for name, parts in rows.items()}


def survey(rank, world):
    """The survey of all samples, of which this rank sees every `world`-th."""
    net, (x, labels) = network(), samples()
    layers = exemplar_layers(net)
    gates, found = GateRows(layers), RatioSurvey(layers, CLASSES)
    for _ in range(2):  # the first must leave nothing behind
        found.reset()
        gates.attach()
        for batch, of_batch in zip(
            x[rank::world].split(BATCH), labels[rank::world].split(BATCH), strict=True
        ):
            with torch.no_grad():
                net(batch)
            found.update(gates.take(), of_batch)
        gates.detach()
        result = found.finish()
    assert not any(layer.gate._forward_hooks for layer in layers.values())
    return result


def one_sees_nothing(rank):
    """Rank 0 sees everything, the other nothing."""
    net, (x, labels) = network(), samples()
    found = RatioSurvey(exemplar_layers(net), CLASSES)
    gates = GateRows(exemplar_layers(net))
    gates.attach()
    if rank == 0:
        net(x)
        found.update(gates.take(), labels)
    return found.finish()


def jobs():
    return {"shared": lambda rank: survey(rank, 2), "one_sees_nothing": one_sees_nothing}
