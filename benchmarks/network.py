"""A training step and an inference of whole networks by normalizer, against the same network with BatchNorm.

    python -m benchmarks.network [--rounds 9] [--batch 8] [--size 128] [--networks resnet50 …]
                                 [--candidates bn en …] [--compile] [--device cuda] [--dtype bfloat16]
                                 [--allocator default]

On a CPU with one thread, channels-last. Candidates are interleaved in one process. A step is forward, a
cross-entropy, and backward; no optimiser. Saved are the bytes that autograd keeps of a step. Prints ratios to
BatchNorm and writes results/network.json, of compiled networks network-compiled.json, of other than 8 images
of 128² network-<batch>x<size>.json. Compile time is the first run less the median of the later ones, from
empty caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import (
    finish,
    interleaved,
    markdown,
    parser,
    peak_bytes,
    saving,
    summary,
    use_allocator,
    write_result,
)
from exemplar_norm import convert_norm

NETWORKS = ("resnet50", "shufflenet_v2_x1_0", "deeplabv3_resnet50")
CANDIDATES: dict[str, dict[str, Any]] = {
    "bn": {},
    "gn": {"norm": "gn"},
    "sn": {"norm": "sn"},
    "en": {"norm": "en"},
    "en fused": {"norm": "en", "fuse": True},
}
"""Name → arguments of convert_norm; the first is the network as it is."""
BASELINE = next(iter(CANDIDATES))


def build(network: str, candidate: str) -> nn.Module:
    """A torchvision network with random weights and a candidate's normalizers."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    options = {"weights_backbone": None} if network.startswith("deeplab") else {}
    model: nn.Module = get_model(network, weights=None, num_classes=100, **options)
    chosen = CANDIDATES[candidate]
    return convert_norm(model, **chosen, preserve=False) if chosen else model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, classes) or (N, classes, H, W)."""
    output = model(images)
    logits: Tensor = output["out"] if isinstance(output, dict) else output
    return logits


def step_of(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """One forward and backward, with autocast to `dtype` where it is not float32."""

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = logits_of(model, images)
            target = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.long, device=logits.device)
            loss = F.cross_entropy(logits, target)
        torch.autograd.backward(loss)
        model.zero_grad()

    return step


def inference_of(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """One forward in evaluation."""

    def infer() -> None:
        with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits_of(model, images)

    return infer


def measure_network(
    network: str, candidates: list[str], images: Tensor, rounds: int, dtype: torch.dtype, compiled: bool
) -> list[dict[str, Any]]:
    """Rows, one a candidate and mode."""
    rows: list[dict[str, Any]] = []
    for mode, run_of in (("training step", step_of), ("inference", inference_of)):
        torch.compiler.reset()
        models = {
            name: build(network, name)
            .to(images.device)
            .to(memory_format=torch.channels_last)
            .train(mode == "training step")
            for name in candidates
        }
        runs = {name: run_of(model, images, dtype) for name, model in models.items()}
        first = {name: first_run(models[name], run, compiled) for name, run in runs.items()}
        seconds = interleaved(runs, rounds, warm=True)
        of_mode: list[dict[str, Any]] = []
        for name, model in models.items():
            row: dict[str, Any] = {
                "network": network, "mode": mode, "candidate": name, "compiled": compiled,
                "batch": len(images), "size": images.shape[-1], **summary(seconds[name]),
            }  # fmt: skip
            with saving(list(model.parameters())) as saved:
                row["peak"] = peak_bytes(runs[name])
            if mode == "training step":
                row["saved"] = sum(saved.values())
            if compiled:
                took, row["graph_breaks"] = first[name]
                row["compile_s"] = took - row["ms"] / 1e3
            of_mode.append(row)
        for row in of_mode:
            shared = [key for key in ("ms", "compile_s", "saved", "peak") if key in row]
            row |= {f"{key.removesuffix('_s')}_ratio": row[key] / of_mode[0][key] for key in shared}
        rows += of_mode
        told = ", ".join(f"{row['candidate']} {row['ms_ratio']:.2f}" for row in of_mode)
        print(f"{network} {mode}: {told}", flush=True)
    return rows


def first_run(model: nn.Module, run: Callable[[], None], compiled: bool) -> tuple[float, int]:
    """Seconds of the first run, with which a network is compiled, and how often that broke its graph."""
    from torch._dynamo.utils import counters

    if compiled:
        torch.compile(torch.relu)(torch.ones(2))  # what only the first network to be compiled would load
        model.compile(dynamic=False)
    counters.clear()
    with empty_caches() if compiled else nullcontext():
        start = time.perf_counter()
        run()
        finish()
        return time.perf_counter() - start, sum(counters["graph_break"].values())


def empty_caches() -> Any:
    """Within it nothing is found that was built from such a network before, in this process or on disk."""
    from torch._inductor.utils import fresh_cache

    return fresh_cache()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: a line a network and mode, in multiples of BatchNorm's."""
    lines = []
    for network, mode in dict.fromkeys((r["network"], r["mode"]) for r in rows):
        of = {r["candidate"]: r for r in rows if (r["network"], r["mode"]) == (network, mode)}
        others = [row for name, row in of.items() if name != BASELINE]
        times = [f"{row['ms_ratio']:.2f}" for row in others]
        lines.append([network, mode, f"{of[BASELINE]['ms']:.0f}", *times])
        if mode == "training step":
            lines.append(["", "saved bytes", f"{of[BASELINE]['saved'] / 2**20:.0f} MiB"])
            lines[-1] += [f"{row['saved_ratio']:.3f}" for row in others]
        if of[BASELINE]["compiled"]:
            lines.append(["", "compile time", f"{of[BASELINE]['compile_s']:.1f} s"])
            lines[-1] += [f"{row['compile_ratio']:.2f}" for row in others]
            lines.append(["", "graph breaks", *(str(row["graph_breaks"]) for row in of.values())])
    names = dict.fromkeys(r["candidate"] for r in rows if r["candidate"] != BASELINE)
    header = ["network", "", f"{BASELINE}, ms", *(f"{name}, × {BASELINE}" for name in names)]
    return markdown(header, lines)


def main() -> None:
    """Measure, print and write."""
    batch, size = 8, 128
    options = parser(__doc__, rounds=9, batch=batch)
    options.add_argument("--size", type=int, default=size)
    options.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    options.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    options.add_argument("--compile", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    use_allocator(args.allocator)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    images = images.to(args.device, memory_format=torch.channels_last)
    candidates = list(dict.fromkeys([BASELINE, *args.candidates]))
    rows = []
    for network in args.networks:
        rows += measure_network(
            network, candidates, images, args.rounds, getattr(torch, args.dtype), args.compile
        )
    other = "" if (args.batch, args.size) == (batch, size) else f"-{args.batch}x{args.size}"
    name = f"network{'-compiled' if args.compile else ''}{other}"
    print(f"\n{table(rows)}\n\nwritten: {write_result(name, rows, args.device, args.dtype)}")


if __name__ == "__main__":
    main()
