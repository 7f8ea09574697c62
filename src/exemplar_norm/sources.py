"""What `convert_norm` can replace: the layers it knows, and what each of them computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exemplar_norm.base import MomentLayer

_BN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IN = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# timm's classes by name, so that timm is needed by those alone who use it.
_TIMM_BN = ("BatchNormAct2d", "SyncBatchNormAct")
_TIMM_GN = ("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act")
_TIMM_DIMS = {"BatchNormAct2d": 2}


class Source(NamedTuple):
    """A layer to replace, in the family's words."""

    module: nn.Module
    normalizer: str
    """Which of "in", "ln", "bn", "gn" it applies."""
    num_features: int
    groups: int | None
    """GroupNorm's groups; None for the others."""
    dims: int | None
    """Spatial dimensions its class stands for; None where it takes any."""
    eps: float
    momentum: float | None
    has_momentum: bool
    weight: Tensor | None
    bias: Tensor | None

    @property
    def activation(self) -> nn.Sequential | None:
        """What a norm-plus-activation class does after normalizing; None for a plain layer."""
        parts = [getattr(self.module, name, None) for name in ("drop", "act")]
        modules = [p for p in parts if isinstance(p, nn.Module) and type(p) is not nn.Identity]
        return nn.Sequential(*modules) if modules else None


def read_source(module: nn.Module) -> Source | None:
    """Describe `module` if it is a layer that can be replaced; None if it is not.

    Types are compared exactly: a subclass may compute something else (FrozenBatchNorm2d, LayerNorm2d, …).
    """
    kind = _unparametrized_type(module)
    timm_name = kind.__name__ if kind.__module__.startswith("timm.") else None
    if kind in _BN or kind is nn.SyncBatchNorm or timm_name in _TIMM_BN:
        dims = _BN.index(kind) + 1 if kind in _BN else _TIMM_DIMS.get(kind.__name__)
        return _describe(module, "bn", int(module.num_features), dims)  # type: ignore[arg-type]
    if kind in _IN:
        return _describe(module, "in", int(module.num_features), _IN.index(kind) + 1)  # type: ignore[arg-type]
    if kind is nn.GroupNorm or timm_name in _TIMM_GN:
        groups, channels = int(module.num_groups), int(module.num_channels)  # type: ignore[arg-type]
        normalizer = {1: "ln", channels: "in"}.get(groups, "gn")
        return _describe(module, normalizer, channels, None)._replace(groups=groups)
    return None


def _describe(module: nn.Module, normalizer: str, num_features: int, dims: int | None) -> Source:
    return Source(
        module=module,
        normalizer=normalizer,
        num_features=num_features,
        groups=None,
        dims=dims,
        eps=module.eps,  # type: ignore[arg-type]
        momentum=getattr(module, "momentum", None),
        has_momentum=hasattr(module, "momentum"),
        weight=getattr(module, "weight", None),
        bias=getattr(module, "bias", None),
    )


def _unparametrized_type(module: nn.Module) -> type:
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def attachments(module: nn.Module) -> list[str]:
    """What hangs on a module and a replacement would lose: names of its hook tables, parametrizations."""
    found = [name for name, value in vars(module).items() if name.endswith("_hooks") and value]
    for name, parameter in module.named_parameters(recurse=False):
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            found.append(f"hooks on {name}")
    return [*found, "parametrizations"] if parametrize.is_parametrized(module) else found


def is_other_norm(module: nn.Module) -> bool:
    """Whether `module` looks like a normalization layer but can neither be replaced nor is of the family."""
    if isinstance(module, MomentLayer) or not _named_norm(module):
        return False
    return read_source(module) is None and not any(_named_norm(child) for child in module.children())


def _named_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def placement(module: nn.Module, model: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and floating dtype of the module's own tensors, else of the model's."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return None, None
