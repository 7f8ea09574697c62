"""How many operations one pass of a layer hands over: to PyTorch's CPU kernels, or to a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.measure import on_gpu

_FREE = ("empty", "new_empty", "_unsafe_view", "_local_scalar_dense", "set_", "resize_")
"""What computes nothing, and is not known as a view by its schema."""
_GENERATED = "cpp_fused"
"""In the name of every kernel that Inductor builds for a CPU."""


def launches(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, int]:
    """Operations of one forward and one backward pass (gradients of input and parameters).

    On a CPU, from the profiler's record: each operation as autograd dispatches it to its kernel, once,
    whatever that calls in turn, and each kernel that Inductor built. Views, metadata, empty tensors and
    reading a number are left out. An operation that is defined by others is counted as those. Kernels of
    Inductor are recorded only where they were built within `recorded_kernels`.

    On a GPU, what its stream was given: kernels, copies and fills.
    """
    inputs = [x, *layer.parameters()]
    y, forward = _recorded(lambda: layer(x))
    _, backward = _recorded(lambda: torch.autograd.grad(y, inputs, dy))
    return {"launches_forward": forward, "launches_backward": backward}


def recorded_kernels() -> Any:
    """Within it, Inductor builds CPU kernels whose calls the profiler sees (some 10 ns a call)."""
    from torch._inductor import config

    return config.patch({"cpp.enable_kernel_profile": True})


def _recorded(run: Callable[[], Any]) -> tuple[Any, int]:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    names = torch._C._profiler._ExperimentalConfig(capture_overload_names=True)
    with torch.profiler.profile(activities=kinds, experimental_config=names) as profile:
        result = run()
        if on_gpu():
            torch.cuda.synchronize()
    events = list(profile.events() or ())
    return result, on_device(events) if on_gpu() else sum(on_cpu(e) for e in events if e.cpu_parent is None)


def on_device(events: Iterable[FunctionEvent]) -> int:
    """Kernels, copies and fills among events; ranges that the program named are no work."""
    return sum(event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in events)


def on_cpu(event: FunctionEvent) -> int:
    """Operations of an event and of those within it, as `launches` counts them."""
    own = int(_GENERATED in event.name)
    if event.name.startswith("aten::"):
        operation, overload = event.name.removeprefix("aten::"), event.overload_name
        if not _by_others(operation, overload):
            return int(_computes(operation, overload))
        # `var` and its like, which one overload defines by another, do so without a record of the other.
        own = int(any(_computes(operation, name) for name in _overloads(operation)))
    return sum(on_cpu(child) for child in event.cpu_children) or own


def _overloads(operation: str) -> list[str]:
    """Overloads that take tensors, by name."""
    names: list[str] = getattr(torch.ops.aten, operation).overloads()
    return [name for name in names if torch._C._dispatch_has_kernel(_full(operation, name))]


@cache
def _by_others(operation: str, overload: str) -> bool:
    """Whether an operation has no kernel of its own, on any device."""
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(_full(operation, overload), key)


@cache
def _computes(operation: str, overload: str) -> bool:
    """Whether an operation has a kernel that fills a tensor: no view, whose output is memory of its input."""
    if operation.startswith(_FREE) or _by_others(operation, overload):
        return False
    returns = getattr(getattr(torch.ops.aten, operation), overload or "default")._schema.returns
    return all(r.alias_info is None or r.alias_info.is_write for r in returns)


def _full(operation: str, overload: str) -> str:
    return f"aten::{operation}" + (f".{overload}" if overload not in ("", "default") else "")
