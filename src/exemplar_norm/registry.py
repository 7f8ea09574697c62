"""NORMS: every normalizer of the comparison, built the same way from its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from exemplar_norm import conditional, exemplar, switch
from exemplar_norm.base import check_positive
from exemplar_norm.batch import BatchNorm

# Spatial dimensions of the class's name → class; None for a class that takes inputs of any rank.
ByDims = dict[int | None, Callable[..., nn.Module]]

_CHECKED = ("eps", "momentum")


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """PyTorch's BatchNorm for any rank: for conversions whose source does not say which."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of 2 or more dimensions, got {input.dim()}")


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """PyTorch's InstanceNorm for batched inputs of any rank."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 3:
            raise ValueError(f"expected an input of 3 or more dimensions, got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(input)
        output: torch.Tensor = self._apply_instance_norm(input)
        return output


class _InstanceNorm1d(nn.InstanceNorm1d):
    """PyTorch's InstanceNorm for batched inputs alone: it would take (N, C) for one sample (C, L)."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() != 3:
            raise ValueError(
                f"InstanceNorm1d: expected (N, C, L), got shape {tuple(input.shape)}; "
                "a single position has no spread"
            )


def _group_norm(num_features: int, groups: int = 32, **options: Any) -> nn.GroupNorm:
    if num_features % check_positive("groups", groups):
        raise ValueError(f"groups: expected a divisor of num_features = {num_features}, got {groups!r}")
    return nn.GroupNorm(groups, num_features, **options)


class NormBuilder:
    """One entry of NORMS: `builder(num_features, *, dims=2, **options) -> Module`.

    Attributes:
        name: the key.
        options: names of the options, `device` and `dtype` left out.
        classes: what it builds, by the spatial dimensions of the class's name (None: any rank).

    Raises:
        ValueError: on call, for `num_features` or `dims` that are none, an option that the normalizer does
            not have, or a value that it refuses.
    """

    def __init__(self, name: str, classes: ByDims, options: Sequence[str], **fixed: Any) -> None:
        self.name = name
        self.options = tuple(options)
        self.classes = classes
        self._fixed = fixed

    def __call__(self, num_features: int, *, dims: int | None = 2, **options: Any) -> nn.Module:
        """Build the layer for `num_features` channels; dims=None takes inputs of any rank."""
        unknown = sorted(set(options) - {*self.options, "device", "dtype"})
        if unknown:
            raise ValueError(
                f"norm {self.name!r}: expected options among {', '.join(self.options)}, "
                f"got {', '.join(unknown)}"
            )
        if not isinstance(dims, int | None) or dims not in self.classes:
            raise ValueError(f"dims: expected 1, 2 or 3, got {dims!r}")
        num_features = check_positive("num_features", num_features)
        # PyTorch's layers take any number: the family's checks of the same arguments.
        BatchNorm(num_features, device="meta", **{k: options[k] for k in _CHECKED if k in options})
        return self.classes[dims](num_features, **self._fixed, **options)


def _family(name: str, any_rank: type, *by_dims: type) -> NormBuilder:
    arguments = inspect.signature(any_rank).parameters
    options = [a for a in arguments if a not in ("num_features", "device", "dtype")]
    return NormBuilder(name, {None: any_rank, **dict(enumerate(by_dims, 1))}, options)


_BATCH_NORM: ByDims = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d, None: _BatchNorm}
_INSTANCE_NORM: ByDims = {
    1: _InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d, None: _InstanceNorm,
}  # fmt: skip
_GROUP_NORM: ByDims = dict.fromkeys((1, 2, 3, None), _group_norm)

NORMS: dict[str, NormBuilder] = {
    builder.name: builder
    for builder in (
        NormBuilder("bn", _BATCH_NORM, ("eps", "momentum")),
        NormBuilder("in", _INSTANCE_NORM, ("eps",), affine=True),
        NormBuilder("ln", _GROUP_NORM, ("eps",), groups=1),
        NormBuilder("gn", _GROUP_NORM, ("groups", "eps")),
        _family("sn", switch.SwitchNorm, switch.SwitchNorm1d, switch.SwitchNorm2d, switch.SwitchNorm3d),
        _family(
            "ssn",
            switch.SparseSwitchNorm,
            switch.SparseSwitchNorm1d,
            switch.SparseSwitchNorm2d,
            switch.SparseSwitchNorm3d,
        ),
        _family(
            "cbn",
            conditional.ConditionalNorm,
            conditional.ConditionalNorm1d,
            conditional.ConditionalNorm2d,
            conditional.ConditionalNorm3d,
        ),
        _family(
            "en",
            exemplar.ExemplarNorm,
            exemplar.ExemplarNorm1d,
            exemplar.ExemplarNorm2d,
            exemplar.ExemplarNorm3d,
        ),
    )
}
"""NORMS[key](num_features, *, dims=2, **options) → Module, for every normalizer of the comparison.

"bn", "in", "ln" and "gn" are PyTorch's own affine modules, the honest baselines ("ln" is GroupNorm with
one group, the LayerNorm of convolutional networks). "in" with dims=1 refuses (N, C): one position has no
spread, and PyTorch would take it for a single sample (C, L)."""
