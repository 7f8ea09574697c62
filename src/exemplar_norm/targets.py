"""What `convert_norm` puts in the place of a layer: one of NORMS with options, or what a callable builds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import nn

from exemplar_norm.base import check_positive
from exemplar_norm.batch import BatchNorm
from exemplar_norm.gate import largest_divisor
from exemplar_norm.normalizers import check_normalizers
from exemplar_norm.registry import NORMS, NormBuilder
from exemplar_norm.sources import Source, channels_of, looks_like_norm, read_member, read_source, setting

Norm = str | Callable[[int], nn.Module]


class Target(Protocol):
    """What takes the place of layers."""

    def read(self, module: nn.Module) -> Source | None:
        """Describe `module` if it can be replaced."""

    def is_wanted(self, module: nn.Module, source: Source | None) -> bool:
        """Whether the layer is already what would take its place."""

    def build(self, source: Source) -> nn.Module:
        """The layer in the place of `source`, with its eps, momentum and ranks."""


def choose_target(norm: Norm, options: dict[str, Any], modules: Iterable[nn.Module]) -> Target:
    """What `norm` names, checked with its options; `modules` are those of the network to convert.

    Raises:
        ValueError: `norm` is unknown, or an option or its value is.
    """
    if isinstance(norm, NormBuilder):
        return _Built(norm, options)
    if callable(norm):
        if options:
            raise ValueError(
                f"options go with a key of NORMS; for a callable, expected none, got {sorted(options)}"
            )
        return _Called(norm, modules)
    if not isinstance(norm, str) or norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)} or a callable, got {norm!r}")
    return _Built(NORMS[norm], options)


class _Built:
    """Layers of one entry of NORMS."""

    def __init__(self, builder: NormBuilder, options: dict[str, Any]) -> None:
        self.builder = builder
        self.options = options
        if options.get("gate_rate", 0) is None:  # None is a layer's own, where it has one
            self.options = {key: value for key, value in options.items() if key != "gate_rate"}
        placed = sorted({"device", "dtype"} & set(options))
        if placed:
            raise ValueError(f"options: expected no {placed[0]}: every replacement has that of its source")
        # Also where no layer is replaced, names and values of options have to be right.
        self.build(Source(nn.Identity(), "", 1, None, None, {}, None, None), device="meta")

    def read(self, module: nn.Module) -> Source | None:
        return read_source(module) or read_member(module, self.builder)

    def is_wanted(self, module: nn.Module, source: Source | None) -> bool:
        if source is None or source.activation is not None:
            return False
        name = self.builder.name
        # One group, or as many as channels, is what "gn" comes to in a small layer.
        if source.normalizer != name and not (name == "gn" and source.groups is not None):
            return False
        compared = {*self.options, "groups"} if name == "gn" else set(self.options)
        if not compared:
            return True
        new = self.build(source, device="meta")
        return all(setting(new, option) == setting(module, option) for option in compared)

    def build(self, source: Source, **placed: Any) -> nn.Module:
        given = {**source.options, **self.options}
        if not given.get("sync") and "process_group" not in self.options:
            given.pop("process_group", None)
        if self.builder.name == "bn" and given.get("sync"):
            return _synced_batch_norm(source, given, **placed)
        given = {key: value for key, value in given.items() if key in (*self.builder.options, *self.options)}
        if "normalizers" in given:
            given["normalizers"] = check_normalizers(given["normalizers"])
        if self.builder.name == "gn" or "gn" in given.get("normalizers", ()):
            given["groups"] = _fitting_groups(source, given.get("groups"))
        return self.builder(source.num_features, dims=source.dims, **given, **placed)


def _synced_batch_norm(source: Source, given: dict[str, Any], **placed: Any) -> nn.Module:
    """A BatchNorm over ranks in the place of another, of the same class: what runs there depends on it."""
    if not isinstance(source.module, BatchNorm):
        given = {key: value for key, value in given.items() if key != "sync"}
        return nn.SyncBatchNorm(source.num_features, **given, **placed)
    return BatchNorm(source.num_features, **given, **placed)


def _fitting_groups(source: Source, wanted: Any) -> int:
    """The groups asked for, else the source's own, else 32, lowered to a divisor of C."""
    if wanted is None:
        wanted = source.groups if source.normalizer == "gn" else 32
    return largest_divisor(source.num_features, check_positive("groups", wanted))


class _Called:
    """Layers that a callable num_features → Module builds."""

    def __init__(self, function: Callable[[int], nn.Module], modules: Iterable[nn.Module]) -> None:
        self.function = function
        self.kinds = {function} if isinstance(function, type) else _kinds(function, modules)

    def read(self, module: nn.Module) -> Source | None:
        return read_source(module)

    def is_wanted(self, module: nn.Module, source: Source | None) -> bool:
        if type(module) not in self.kinds:
            return False
        if source is None or isinstance(self.function, type):
            return True
        new = self.build(source)
        return _description(new) == _description(module)

    def build(self, source: Source) -> nn.Module:
        channels = source.num_features
        new = self.function(channels)
        if not isinstance(new, nn.Module):
            raise ValueError(f"norm: expected a callable num_features → Module, got {new!r} for {channels}")
        if channels_of(new) not in (None, channels):
            raise ValueError(
                f"norm: expected a layer of {channels} channels, "
                f"got a {type(new).__name__} of {channels_of(new)}"
            )
        # A layer that spans ranks by itself keeps its own.
        ranks = ("sync", "process_group") if vars(new).get("sync") is False else ()
        for key in ("eps", "momentum", *ranks):
            if key in source.options and key in vars(new):
                setattr(new, key, source.options[key])
        return new


def _kinds(function: Callable[[int], nn.Module], modules: Iterable[nn.Module]) -> set[type]:
    """The classes that the function builds for the sizes of layers in the network.

    Containers are left out: another of the same class says nothing.
    """
    sizes: dict[int, bool] = {}  # C → whether a layer of that size is to be replaced
    for module in modules:
        size = channels_of(module)
        if size is not None and size > 0 and looks_like_norm(module):
            sizes[size] = sizes.get(size, False) or read_source(module) is not None
    kinds: set[type] = set()
    for size, is_needed in sizes.items():
        try:
            kinds.add(type(function(size)))
        except ValueError:
            if is_needed:
                raise
            # It builds no layer of that size, so the one in the network is not its own.
    return kinds - {nn.Sequential, nn.ModuleList, nn.ModuleDict}


def _description(layer: nn.Module) -> tuple[str, Any, list[tuple[str, tuple[int, ...]]]]:
    """What tells layers of one class apart: settings, ranks, parts, and the shapes of their state."""
    shapes = [(key, tuple(value.shape)) for key, value in layer.state_dict().items()]
    return repr(layer), getattr(layer, "process_group", None), shapes
