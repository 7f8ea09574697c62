"""Which form of the layers runs: plain autograd, or own backward passes over native primitives."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "eager", "compiled", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)

# One value for the process, not a context variable: autograd and data-parallel threads must see it too.
_active: str = "auto"


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Choose the form in which the layers of the family run, for the length of a `with` block.

    Args:
        name: "reference" is plain differentiable PyTorch, the only form with double backward and the
            oracle of the others. The others keep X as their only activation and have a backward of their own:
            "eager" on native primitives; "compiled" on passes that Inductor builds once per process and shape
            family, some seconds each; "triton" on Triton kernels, for inputs on a CUDA device (float64 stays
            with "eager"). "auto" (the default) takes "triton" on a CUDA device where Triton can be imported,
            else "eager", and "reference" where something has to see through the layer: `torch.func`,
            forward-mode differentiation, `torch.jit.trace`, tensor subclasses, the meta device. Under
            `torch.compile` and `torch.export` every name means the plain form, which the compiler fuses.

    Raises:
        ValueError: the name is unknown. A layer raises it where "triton" was chosen and cannot run.
    """
    global _active
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    previous, _active = _active, name
    try:
        yield
    finally:
        _active = previous


def use_triton(x: Tensor) -> bool:
    """Whether the Triton kernels run for this input; float64 stays with the eager passes.

    Raises:
        ValueError: they were asked for by name and cannot run.
    """
    if _active not in ("auto", "triton") or (_active == "auto" and not x.is_cuda):
        return False
    if _active == "triton" and not (has_triton() and (x.is_cuda or _interprets())):
        got = f"a {x.device.type} tensor" if has_triton() else "none installed"
        raise ValueError(f'backend "triton": expected Triton and an input on a CUDA device, got {got}')
    return has_triton() and x.dtype in (torch.float32, torch.float16, torch.bfloat16)


@cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def _interprets() -> bool:
    """Whether Triton's interpreter stands in for a GPU, as in the tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def use_compiled() -> bool:
    """Whether passes built by Inductor were asked for."""
    return _active == "compiled"


def use_reference(x: Tensor) -> bool:
    """Whether the plain form has to run for this input, here and now."""
    # The compiler is asked first, so that it never traces the questions that follow.
    if torch.compiler.is_compiling():
        return True
    if x.numel() == 0:  # native primitives refuse it, and there is nothing to win
        return True
    if _active != "auto":
        return _active == "reference"
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or x.is_meta
        or type(x) not in (Tensor, torch.nn.Parameter)
    )


def refuse_double_backward() -> None:
    """Raise if a backward pass written by hand is to be differentiated itself."""
    # With once_differentiable alone, grad(y.sum(), x, create_graph=True) would be silently wrong.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "second derivatives are not available from this form of the exemplar_norm layers (backward "
            'ran with create_graph=True): run the forward pass under exemplar_norm.backend("reference")'
        )
