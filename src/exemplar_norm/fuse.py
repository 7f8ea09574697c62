"""Fusing a layer of the family with the residual sum and the ReLU that follow it, in networks as they are.

Nothing that a state dict names moves: a ReLU behind a layer gives way to an Identity, and a residual block
gets a forward that hands the residual to its last layer.
"""

from __future__ import annotations

import operator
from collections import Counter
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from exemplar_norm.base import MomentLayer

# Classes by name, so that their packages are needed by those alone who use them. Of the first, a layer and
# the ReLU that runs once, behind it; the others have a forward without branches on data or training mode.
_PAIRS = {
    "torchvision.models.resnet.ResNet": ("bn1", "relu"),
    "segmentation_models_pytorch.encoders.resnet.ResNetEncoder": ("bn1", "relu"),
    "timm.models.resnet.ResNet": ("bn1", "act1"),
}
_BLOCKS = (
    "torchvision.models.resnet.BasicBlock",
    "torchvision.models.resnet.Bottleneck",
    "torchvision.models.inception.BasicConv2d",
    "torchvision.models.googlenet.BasicConv2d",
    "timm.models.resnet.BasicBlock",
    "timm.models.resnet.Bottleneck",
)
_ADDITIONS = {operator.add, operator.iadd, torch.add}
_RELUS = {F.relu, torch.relu, torch.relu_}


def fuse_relu(model: nn.Module) -> int:
    """Fuse layers of the family with what follows them, in place; return how many.

    Fused are a layer and a ReLU that follow one another in a Sequential, in the stem of a ResNet, or in the
    blocks of torchvision's and timm's ResNets (with the residual sum) and torchvision's Inception networks.
    Layers and ReLUs with hooks, or layers in several places, are left alone.
    """
    places = Counter(id(child) for m in model.modules() for child in m._modules.values() if child is not None)
    fused = 0
    for module in list(model.modules()):
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            keys = list(module._modules)
            for pair in pairwise(keys):
                fused += _fuse_pair(module, *pair, places)
        elif name in _PAIRS:
            fused += _fuse_pair(module, *_PAIRS[name], places)
        elif name in _BLOCKS and "forward" not in vars(module):
            fused += fuse_block(module, places)
    return fused


def _is_fusable(layer: Any, places: Counter[int]) -> bool:
    return isinstance(layer, MomentLayer) and places[id(layer)] <= 1 and not _has_hooks(layer)


def _is_relu(module: Any) -> bool:
    return type(module) is nn.ReLU and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return any(value for name, value in vars(module).items() if name.endswith("_hooks"))


def _fuse_pair(parent: nn.Module, layer_key: str, relu_key: str, places: Counter[int]) -> bool:
    layer, relu = parent._modules.get(layer_key), parent._modules.get(relu_key)
    if not (_is_fusable(layer, places) and _is_relu(relu)) or layer.relu:  # type: ignore[union-attr]
        return False
    layer.relu = True  # type: ignore[union-attr]
    parent._modules[relu_key] = nn.Identity().train(parent.training)
    return True


class _Flat(fx.Tracer):
    """Traces a block's own forward, its parts being steps of it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def fuse_block(block: nn.Module, places: Counter[int]) -> int:
    """Give the block a forward in which its layers add residuals and apply ReLUs; return how many."""
    graph, fused = _Flat().trace(block), 0
    parts = dict(block.named_modules())
    _drop_identities(graph, parts)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        found = _match(node, parts) if _applies_relu(node, parts) else None
        if found is None:
            continue
        norm, total, residual = found
        target = str(norm.target)
        layer: Any = parts[target]
        if calls[target] > 1 or not _is_fusable(layer, places):
            continue
        layer.relu = True
        with graph.inserting_before(node):
            given: dict[str, Any] = {} if residual is None else {"residual": residual}
            node.replace_all_uses_with(graph.call_module(target, norm.args, given))
        for done in dict.fromkeys((node, total, norm)):
            graph.erase_node(done)
        fused += 1
    if fused:
        kind, forward = type(block), type(fx.GraphModule(block, graph)).forward
        members = {"forward": forward, "__reduce_ex__": _reduce, "__module__": kind.__module__}
        block.__class__ = type(kind.__name__, (kind,), members)
    return fused


def _drop_identities(graph: fx.Graph, parts: dict[str, nn.Module]) -> None:
    """Take out the steps that stand for an option that is not in use."""
    for node in list(graph.nodes):
        part = parts[str(node.target)] if node.op == "call_module" else None
        if type(part) is nn.Identity and not _has_hooks(part):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _applies_relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return _is_relu(parts[str(node.target)])
    return (node.op == "call_function" and node.target in _RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def _match(relu: fx.Node, parts: dict[str, nn.Module]) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """What a ReLU applies to: (the layer's call, the ReLU's input, the residual), if it can be fused."""
    total = relu.args[0]
    if not isinstance(total, fx.Node) or len(total.users) > 1:
        return None
    if _calls_layer(total, parts):
        return total, total, None
    if total.op == "call_function" and total.target in _ADDITIONS and not total.kwargs:
        for norm, residual in (total.args, total.args[::-1]):
            if isinstance(norm, fx.Node) and isinstance(residual, fx.Node) and norm is not residual:
                if _calls_layer(norm, parts) and len(norm.users) == 1:
                    return norm, total, residual
    return None


def _calls_layer(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(parts[str(node.target)], MomentLayer) and not node.kwargs


def _reduce(block: nn.Module, _protocol: int) -> tuple[Any, ...]:
    """A copy or a pickle is the plain class and the state, fused again when it is built."""
    return _rebuild, (type(block).__mro__[1], block.__dict__)


def _rebuild(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    block = kind.__new__(kind)
    block.__setstate__(state)
    fuse_block(block, Counter())
    return block
