"""What `convert_norm` can replace: the layers it knows, and what each of them computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exemplar_norm.base import MomentLayer
from exemplar_norm.batch import BatchNorm
from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.registry import NORMS, NormBuilder


def _by_class(builder: NormBuilder) -> dict[Any, int | None]:
    return {kind: dims for dims, kind in builder.classes.items()}


_BN = {**_by_class(NORMS["bn"]), nn.SyncBatchNorm: None, BatchNorm: None}
_IN = {**_by_class(NORMS["in"]), nn.InstanceNorm1d: 1}

# timm's classes by name, so that timm is needed by those alone who use it.
_TIMM_BN = {"BatchNormAct2d": 2, "SyncBatchNormAct": None}
_TIMM_GN = ("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act")

_NORMALIZERS = (
    MomentLayer, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Source(NamedTuple):
    """A layer to replace, in the family's words."""

    module: nn.Module
    normalizer: str
    """Which of "in", "ln", "bn", "gn" it applies; for a layer of the family its key in NORMS."""
    num_features: int
    groups: int | None
    """GroupNorm's groups; None for the others."""
    dims: int | None
    """Spatial dimensions its class stands for; None where it takes any."""
    options: dict[str, Any]
    """What a replacement takes over where it has such an option: eps, and momentum, sync and process_group
    where the layer has them; of a layer of the family, every option."""
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
    if kind in _BN or timm_name in _TIMM_BN:
        dims = _BN[kind] if kind in _BN else _TIMM_BN[kind.__name__]
        return _describe(module, "bn", int(module.num_features), dims)  # type: ignore[arg-type]
    if kind in _IN:
        return _describe(module, "in", int(module.num_features), _IN[kind])  # type: ignore[arg-type]
    if kind is nn.GroupNorm or timm_name in _TIMM_GN:
        groups, channels = int(module.num_groups), int(module.num_channels)  # type: ignore[arg-type]
        normalizer = {1: "ln", channels: "in"}.get(groups, "gn")
        return _describe(module, normalizer, channels, None)._replace(groups=groups)
    return None


def read_member(module: nn.Module, builder: NormBuilder) -> Source | None:
    """Describe a layer of the family that `builder` builds; None for any other module."""
    kind, dims = _unparametrized_type(module), _by_class(builder)
    if not isinstance(module, MomentLayer) or kind not in dims:
        return None
    own = {option: setting(module, option) for option in builder.options}
    return _describe(module, builder.name, module.num_features, dims[kind])._replace(options=own)


def _describe(module: nn.Module, normalizer: str, num_features: int, dims: int | None) -> Source:
    options = {key: getattr(module, key) for key in ("eps", "momentum") if hasattr(module, key)}
    if isinstance(module, nn.SyncBatchNorm) or getattr(module, "sync", False):
        options.update(sync=True, process_group=module.process_group)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return Source(module, normalizer, num_features, None, dims, options, weight, bias)


def setting(layer: nn.Module, option: str) -> Any:
    """The layer's own value of an option of its builder."""
    if option == "hidden":
        mlp: Any = getattr(layer, "gate", layer)
        return mlp.fc1.out_features
    if option == "gate_rate" and isinstance(layer, ExemplarNorm):
        return layer.given_rate
    if option == "groups" and isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return getattr(layer, option)


def channels_of(module: nn.Module) -> int | None:
    """C, where the module says it as PyTorch's normalization layers do."""
    found = getattr(module, "num_features", getattr(module, "num_channels", None))
    return found if isinstance(found, int) else None


def _unparametrized_type(module: nn.Module) -> type:
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def own_parts(module: nn.Module) -> list[nn.Module]:
    """The modules that a replacement takes the place of: not the activation of a timm class, which stays."""
    return list(module.modules()) if isinstance(module, MomentLayer) else [module]


def shared_tensors(model: nn.Module) -> set[int]:
    """The ids of the parameters and buffers that are registered in more than one place."""
    registered = (t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values()))
    return {key for key, count in Counter(id(t) for t in registered if t is not None).items() if count > 1}


def attachments(module: nn.Module, shared: Set[int]) -> list[str]:
    """What hangs on a module and a replacement would lose: hooks, parametrizations, ties, its own forward."""
    found = ["a fused ReLU"] if isinstance(module, MomentLayer) and module.relu else []
    for part in own_parts(module):
        found += [name for name, value in vars(part).items() if name.endswith("_hooks") and value]
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is None:
                continue
            if tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
                found.append(f"hooks on {name}")
            if id(tensor) in shared:
                found.append(f"a {name} that is tied to another")
        if "forward" in vars(part):
            found.append("a forward of its own")
        if parametrize.is_parametrized(part):
            found.append("parametrizations")
    return found


def is_other_norm(module: nn.Module) -> bool:
    """Whether `module` looks like a normalization layer, and is none that can be replaced.

    A module that only holds normalizers, such as a block that is named after them, is none itself.
    """
    if isinstance(module, _CONTAINERS) or read_source(module) is not None:
        return False
    inside = (m for m in module.modules() if m is not module)
    return isinstance(module, _NORMALIZERS) or (_named_norm(module) and not any(map(_named_norm, inside)))


def looks_like_norm(module: nn.Module) -> bool:
    """Whether `module` could be a normalization layer of any make: by its name, or having no parts."""
    return _named_norm(module) or next(module.children(), None) is None


def _named_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def placement(module: nn.Module, model: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and floating dtype of the module's own tensors, else of the model's."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return None, None
