"""Whether a sample chooses: gate variants and other normalizers on styled digits and on the positive control.

    python -m benchmarks.gate_choice [--data control styled] [--variants bn sn published …] [--seeds 4 5 6 7]

One loop of plain PyTorch over the suite's data sets and digits_resnet: 14 epochs of batches of 64, SGD with
Nesterov momentum 0.9 under a one-cycle schedule, peak rate 0.05, decay 5e-4, the same for all. A seed has
the same data order, augmentation, styles and initial convolutions for every variant. Of a network with EN
layers the test accuracy is taken again with λ shuffled between the test samples, and with each layer's mean
λ; and how far λ differs from sample to sample, between the halves of the control above all.

Writes a row a run into results/gate_choice.csv, so that an interrupted series goes on, and the tables into
docs/gate.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.document import has_marks, replace_between
from benchmarks.measure import RESULTS, markdown
from benchmarks.rows import Rows
from exemplar_norm import ExemplarNorm2d, convert_norm, record_ratios
from exemplar_norm.ratios import replace_ratios
from tasks.classification.control import DigitsControlDataModule
from tasks.classification.digits import DigitsDataModule
from tasks.classification.styles import STYLES
from tasks.data import SeededDataset
from tasks.networks import build_native

_SEEN: dict[str, Any] = {"reduction": 2, "correlations": "standardised", "descriptor": "mean_std"}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "r 2": {"reduction": 2},
    "C/r ≥ 8": {"reduced": 8},
    "mean_std": {"reduction": 2, "descriptor": "mean_std"},
    "scale-free": {"reduction": 2, "correlations": "scale_free", "descriptor": "mean_std"},
    "random FC₂": {"reduction": 2, "descriptor": "mean_std", "gate_start": "random"},
    "rate 9": {"reduction": 2, "descriptor": "mean_std", "gate_rate": 9.0},
    "standardised": _SEEN,
    "standardised, rate 9": {**_SEEN, "gate_rate": 9.0},
    "standardised, rate 30": {**_SEEN, "gate_rate": 30.0},
    "standardised, rate 9, mean": {**_SEEN, "descriptor": "mean", "gate_rate": 9.0},
    "standardised, rate 9, r 32": {**_SEEN, "reduction": 32, "gate_rate": 9.0},
}
"""EN with other options."""
FROZEN = {"uniform": ("gate.",), "static": ("gate.conv", "gate.fc1", "gate.fc2.weight")}
"""EN whose λ stays 1/K, and EN whose λ is one trained number a layer and normalizer: what is not trained."""
OTHERS = ("bn", "in", "ln", "gn", "sn")
DATA: dict[str, Callable[..., Any]] = {
    "control": DigitsControlDataModule,
    "styled": lambda seed: DigitsDataModule(seed=seed, styles=list(STYLES)),
}
EPOCHS, BATCH, LR = 14, 64, 0.05
RESULT = RESULTS / "gate_choice.csv"
COLUMNS = (
    "data", "variant", "seed", "top1", "shuffled", "mean_ratio", "largest_gap", "share_of_gaps", "std_median",
    "std_largest", "val_top1", "seconds",
)  # fmt: skip
DOCS = Path(__file__).parents[1] / "docs" / "gate.md"
BEGIN, END = "<!-- gate_choice: {data} -->\n", "<!-- /gate_choice: {data} -->\n"


def main() -> None:
    """Run what is missing, write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*OTHERS, *FROZEN, *VARIANTS]
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[4, 5, 6, 7])
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(args.result, COLUMNS, key=3)
    for seed in args.seeds:
        for data in args.data:
            for variant in args.variants:
                if not rows.has(data, variant, seed):
                    rows.add(run(data, variant, seed))
    for data in DATA:
        table = tables([row for row in rows.read() if row["data"] == data])
        print(f"{data}\n{table}")
        begin, end = (mark.format(data=data) for mark in (BEGIN, END))
        if args.result == RESULT and has_marks(DOCS, begin, end):
            replace_between(DOCS, begin, end, table)


def run(data_name: str, variant: str, seed: int) -> dict[str, Any]:
    """Train and test once."""
    start = time.perf_counter()
    data = DATA[data_name](seed=seed)
    data.setup("fit")
    network = build(variant, seed, data.num_classes)
    train(network, SeededDataset(data.examples("train"), seed), seed)
    network.eval()
    images, labels = stacked(data, "test", seed)
    row: dict[str, Any] = {"data": data_name, "variant": variant, "seed": seed}
    row["top1"] = accuracy(network, images, labels)
    row["val_top1"] = accuracy(network, *stacked(data, "val", seed))
    if any(isinstance(layer, ExemplarNorm2d) for layer in network.modules()):
        marked = labels >= 10 if data_name == "control" else None
        row |= choice(network, images, labels, marked)
    return row | {"seconds": round(time.perf_counter() - start)}


def build(variant: str, seed: int, num_classes: int) -> nn.Module:
    """The network with its normalizers; convolutions and head are the same for all variants."""
    torch.manual_seed(seed)
    network = build_native("digits_resnet", num_classes)
    if variant == "bn":
        return network
    if variant in OTHERS:
        return convert_norm(network, variant, preserve=False)
    network = convert_norm(network, "en", preserve=False, **VARIANTS.get(variant, {}))
    for name, parameter in network.named_parameters():
        if any(part in name for part in FROZEN.get(variant, ())):
            parameter.requires_grad_(False)
    return network


def train(network: nn.Module, examples: SeededDataset, seed: int) -> None:
    """Train in the order of the seed."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(examples) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * steps)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(examples), generator=generator).tolist()[: steps * BATCH]
        loader = DataLoader(
            dataset=examples, sampler=[(epoch, index) for index in order], batch_size=BATCH, num_workers=0
        )
        for images, labels, _ in loader:
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def stacked(data: Any, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """All images and labels of a split, as evaluated."""
    examples = SeededDataset(data.examples(split), seed)
    images, labels, _ = zip(*(examples[0, index] for index in range(len(examples))), strict=True)
    return torch.stack(images), torch.tensor(labels)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose most probable class is theirs."""
    return float((network.eval()(images).argmax(1) == labels).float().mean())


def choice(
    network: nn.Module, images: Tensor, labels: Tensor, marked: Tensor | None, shuffles: int = 5
) -> dict[str, float]:
    """What λ does: accuracy without its choice per sample, and its variation by layer."""
    with record_ratios(network) as found:
        accuracy(network, images, labels)
    ratios = dict(found)
    shuffled = []
    for seed in range(shuffles):
        with replace_ratios(network, "shuffled", seed=seed):
            shuffled.append(accuracy(network, images, labels))
    with replace_ratios(network, {name: ratio.mean(0) for name, ratio in ratios.items()}):
        static = accuracy(network, images, labels)
    std = [float(ratio.std(0).max()) for ratio in ratios.values()]
    told = {"shuffled": float(np.mean(shuffled)), "mean_ratio": static}
    told |= {"std_median": float(np.median(std)), "std_largest": max(std)}
    if marked is not None:
        gaps = [float((r[marked].mean(0) - r[~marked].mean(0)).abs().max()) for r in ratios.values()]
        told |= {"largest_gap": max(gaps), "share_of_gaps": float(np.mean([gap >= 0.3 for gap in gaps]))}
    return told


def tables(rows: list[dict[str, str]]) -> str:
    """The rows of a data set as Markdown, a line a variant: means over seeds, and each seed's accuracy."""
    heading = [
        "", "top-1, %", "λ shuffled", "mean λ", "layers where λ differs by ≥ 0.3 between the halves",
        "largest difference", "std of λ over samples, median layer", "by seed",
    ]  # fmt: skip
    lines = []
    for variant in [*OTHERS, *FROZEN, *VARIANTS]:
        own = [row for row in rows if row["variant"] == variant]
        if not own:
            continue
        values = [
            f"{_mean(own, key, 100):.1f}" if own[0][key] else "" for key in ("top1", "shuffled", "mean_ratio")
        ]
        share = f"{_mean(own, 'share_of_gaps', 100):.0f} %" if own[0]["share_of_gaps"] else ""
        gap = f"{_mean(own, 'largest_gap'):.2f}" if own[0]["largest_gap"] else ""
        std = f"{_mean(own, 'std_median'):.4f}" if own[0]["std_median"] else ""
        seeds = ", ".join(
            f"{100 * float(row['top1']):.1f}" for row in sorted(own, key=lambda r: int(r["seed"]))
        )
        lines.append([variant, *values, share, gap, std, seeds])
    return markdown(heading, lines) + "\n"


def _mean(rows: list[dict[str, str]], key: str, factor: float = 1.0) -> float:
    return factor * float(np.mean([float(row[key]) for row in rows]))


if __name__ == "__main__":
    main()
