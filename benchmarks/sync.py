"""What synchronised batch statistics send, and what that takes: several processes with gloo on this machine.

    python -m benchmarks.sync [--processes 2] [--network resnet50] [--batch 8] [--size 64] [--rounds 11]

Bytes are those that one process hands over in a step, counted call by call. PyTorch's SyncBatchNorm refuses
tensors on a CPU: its own code runs here and sends what it sends, with stand-ins for its CUDA kernels that
give the right shapes and no values. Times are of interleaved runs, of rank 0. Prints tables and writes
results/sync.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import interleaved, markdown, summary, write_result
from exemplar_norm import NORMS, convert_norm

KINDS = ("SyncBatchNorm", "bn", "sn", "ssn", "en")
"""PyTorch's own, then the family's layers that have batch statistics."""
CHANNELS = (64, 256, 2048)


class Messages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of each message that this process sends while the mode is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what a collective call hands over."""
        if func.namespace == "c10d":
            # all_gather has what it fills before what it sends; all_reduce sends what it fills.
            handed = args[1] if "gather" in func.__name__ else args[0]
            tensors = [handed] if isinstance(handed, Tensor) else handed
            self.sent.append(sum(tensor.nbytes for tensor in tensors))
        return func(*args, **(kwargs or {}))


class NativeSync(nn.Module):
    """The function behind nn.SyncBatchNorm, called as that module calls it on a GPU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Output of the right shape."""
        group, ranks = dist.group.WORLD, dist.get_world_size()
        buffers = (self.running_mean, self.running_var)
        y: Tensor = SyncBatchNorm.apply(x, self.weight, self.bias, *buffers, 1e-5, 0.1, group, ranks)
        return y


@contextmanager
def without_kernels() -> Iterator[None]:
    """Stand-ins for SyncBatchNorm's CUDA kernels."""

    def per_channel(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])

    stand_ins: dict[str, Callable[..., Any]] = {
        "batch_norm_stats": per_channel,
        "batch_norm_gather_stats_with_counts": per_channel,
        "batch_norm_elemt": lambda x, *_: x.clone(),
        "batch_norm_backward_reduce": lambda dy, x, *_: (*per_channel(x), *per_channel(x)),
        "batch_norm_backward_elemt": lambda dy, *_: dy.clone(),
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch, name, stand_in))
        yield


def build(kind: str, channels: int, sync: bool = True) -> nn.Module:
    """A layer by its name in KINDS."""
    if kind == "SyncBatchNorm":
        return NativeSync(channels)
    if kind == "bn":  # the registry's is PyTorch's own
        from exemplar_norm.batch import BatchNorm

        return BatchNorm(channels, sync=sync)
    return NORMS[kind](channels, sync=sync)


def count(model: nn.Module, x: Tensor) -> dict[str, list[int]]:
    """Bytes of each message of a forward and of a backward pass."""
    with without_kernels():
        with Messages() as forward:
            y = model(x)
        with Messages() as backward:
            y.sum().backward()
    return {"forward": forward.sent, "backward": backward.sent}


def layer_rows() -> list[dict[str, Any]]:
    """Messages of one layer of each kind and width."""
    rows = []
    for channels in CHANNELS:
        x = torch.randn(2, channels, 4, 4, requires_grad=True)
        for kind in KINDS:
            rows.append({"kind": kind, "channels": channels, **count(build(kind, channels), x)})
    return rows


def layer_times(batch: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a training step of an EN layer on 8×8 maps, alone and synchronised."""
    rows = []
    for channels in CHANNELS:
        x = torch.randn(batch, channels, 8, 8, requires_grad=True)
        layers = {sync: build("en", channels, sync) for sync in (False, True)}
        runs = {str(sync): partial(_step, layer, x) for sync, layer in layers.items()}
        times = {sync: summary(seconds)["ms"] for sync, seconds in interleaved(runs, 5 * rounds).items()}
        rows.append({"channels": channels, "alone_ms": times["False"], "sync_ms": times["True"]})
    return rows


def network_row(network: str, batch: int, size: int, rounds: int) -> dict[str, Any]:
    """Bytes and milliseconds of a training step of a network of EN layers under DDP."""
    from torchvision.models import get_model

    def built(sync: bool) -> nn.Module:
        return convert_norm(get_model(network, weights=None), "en", preserve=False, sync=sync)

    x, model = torch.randn(batch, 3, size, size), built(sync=True)
    sent = count(model, x)
    row: dict[str, Any] = {"network": network, "batch": batch, "size": size}
    row |= {f"{name}_messages": len(sizes) for name, sizes in sent.items()}
    row |= {f"{name}_bytes": sum(sizes) for name, sizes in sent.items()}
    row["gradient_bytes"] = sum(p.nbytes for p in model.parameters())
    row["buffer_bytes"] = sum(b.nbytes for b in model.buffers())
    models = {sync: DistributedDataParallel(built(sync)) for sync in (False, True)}
    runs = {str(sync): partial(_step, wrapped, x) for sync, wrapped in models.items()}
    times = {sync: summary(seconds)["ms"] for sync, seconds in interleaved(runs, rounds).items()}
    return {**row, "alone_ms": times["False"], "sync_ms": times["True"]}


def _step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()


def table(layers: list[dict[str, Any]], times: list[dict[str, Any]], row: dict[str, Any]) -> str:
    """The rows as Markdown."""
    messages = [
        [r["kind"], str(r["channels"]), *(" + ".join(map(str, r[way])) for way in ("forward", "backward"))]
        for r in layers
    ]
    seconds = [[str(r["channels"]), f"{r['alone_ms']:.2f}", f"{r['sync_ms']:.2f}"] for r in times]
    network = [
        [way, str(row[f"{way}_messages"]), f"{row[f'{way}_bytes']:,}"] for way in ("forward", "backward")
    ]
    network += [["gradients", "by DDP", f"{row['gradient_bytes']:,}"]]
    network += [["running statistics", "by DDP", f"{row['buffer_bytes']:,}"]]
    return "\n\n".join(
        [
            markdown(["layer", "C", "bytes forward", "bytes backward"], messages),
            markdown(["EN, C", "step alone, ms", "synchronised, ms"], seconds),
            markdown([f"{row['network']} with EN", "messages", "bytes"], network),
            f"{row['network']}, {row['batch']} × {row['size']}² a process, step under DDP: "
            f"{row['alone_ms']:.0f} ms, synchronised {row['sync_ms']:.0f} ms",
        ]
    )


def _rank(rank: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.processes))
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=args.processes
    )
    layers, times = layer_rows(), layer_times(args.batch, args.rounds)
    row = network_row(args.network, args.batch, args.size, args.rounds)
    if rank == 0:
        path = write_result("sync", [{"processes": args.processes, "layers": layers, "times": times, **row}])
        print(f"{table(layers, times, row)}\n\nwritten: {path}")
    dist.destroy_process_group()


def main() -> None:
    """Count, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=8, help="Images of each process.")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (folder, args), nprocs=args.processes)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
