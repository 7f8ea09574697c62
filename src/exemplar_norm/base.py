"""What every layer of the family shares: the passes, the checks of the input, the statistics."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from exemplar_norm.moments import Moments, moment_norm
from exemplar_norm.normalizers import RunningStatistics, Statistics, check_normalizers, group_statistics, pool

DEFAULT_NORMALIZERS = ("in", "ln", "bn")
"""The mixture of the SN and EN papers."""


class MomentLayer(RunningStatistics):
    """A normalization layer that is a map from instance moments to a scale and a shift.

    A subclass sets `ranks`, registers its parameters and writes `coefficients`.

    Args:
        num_features: C, the size of dimension 1 of the input.
        normalizers: the K normalizers to mix, of "in", "ln", "bn", "gn".
        groups: groups of "gn"; it has to divide C where "gn" is among them.
        eps: added to every variance.
        momentum: of the running averages of "bn"; None for the cumulative average.
        sync: whether "bn" spans all ranks of `process_group` in training.
        process_group: those ranks; None for all.
        device: where buffers are created.
        dtype: of the buffers.

    Shape: (N, C, *spatial) → the same. An empty batch gives an empty output and moves no average.

    Raises:
        ValueError: an argument, or an input's rank, channels or dtype, is not as expected, or an input in
            training has no positions.
    """

    ranks: ClassVar[tuple[int, ...]] = ()
    """Accepted ranks of the input; empty for any from 2."""

    relu: bool = False
    """Whether a ReLU, and a residual sum before it, are part of the layer: see `convert_norm`."""

    squeezed: ClassVar[tuple[str, ...]] = ("weight", "bias", "running_mean", "running_var")
    """Entries of the state that the public codes keep with additional dimensions of size 1."""

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str],
        *,
        groups: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_positive("num_features", num_features)
        self.normalizers = check_normalizers(normalizers)
        self.groups = check_positive("groups", groups)
        if "gn" in self.normalizers and self.num_features % self.groups:
            raise ValueError(
                f"groups: expected a divisor of num_features = {self.num_features}, got {self.groups}"
            )
        self.eps = check_not_negative("eps", eps)
        if momentum is not None and (not _is_real(momentum) or not 0 <= momentum <= 1):
            raise ValueError(f"momentum: expected a number in [0, 1] or None, got {momentum!r}")
        self.momentum = None if momentum is None else float(momentum)
        self.sync = sync
        self.process_group = process_group
        if "bn" in self.normalizers:
            self._register_running_statistics(device, dtype)

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Map the moments to (A, B), each (N, C)."""
        raise NotImplementedError(f"{type(self).__name__} has to define coefficients(moments)")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize `x` (N, C, *spatial), add `residual` if there is one, apply a ReLU if `relu` is set."""
        self._check_input(x)
        if residual is None or (residual.shape == x.shape and residual.dtype == x.dtype):
            return moment_norm(x, self.coefficients, residual=residual, relu=self.relu)
        y = moment_norm(x, self.coefficients) + residual  # other dtypes promote, other shapes broadcast
        return torch.relu(y) if self.relu else y

    def statistics(self, moments: Moments) -> Statistics:
        """(μ, σ²) of every normalizer, each (N, K, C)."""
        mean, var, _ = moments
        pairs = []
        for name in self.normalizers:
            if name == "in":
                pairs.append((mean, var))
            elif name == "ln":
                pairs.append(pool(mean, var, 1))
            elif name == "gn":
                pairs.append(group_statistics(mean, var, self.groups))
            else:
                pairs.append(self.batch_statistics(moments))
        mu, sigma2 = zip(*pairs, strict=True)
        shape = mean.shape
        return (
            torch.stack([m.expand(shape) for m in mu], 1),
            torch.stack([s.expand(shape) for s in sigma2], 1),
        )

    def _check_input(self, x: Tensor) -> None:
        ranks = self.ranks
        if x.dim() not in ranks if ranks else x.dim() < 2:
            wanted = " or ".join(f"{r}" for r in ranks) if ranks else "2 or more"
            raise ValueError(
                f"{type(self).__name__}: expected an input of {wanted} dimensions, (N, C, *spatial), "
                f"got shape {tuple(x.shape)}"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected {self.num_features} channels in dimension 1, "
                f"got {x.shape[1]} (shape {tuple(x.shape)})"
            )
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__}: expected a floating-point input, got {x.dtype}")
        if self.training and 0 in x.shape[2:]:
            raise ValueError(
                f"{type(self).__name__}: expected one or more positions in training, got {tuple(x.shape)}"
            )

    def translate(self, state: dict[str, Any], prefix: str) -> None:
        """Bring the layer's entries of `state`, named from `prefix` on, from public layouts into its own.

        In place. The public Switchable Normalization code has `weight` and `bias` as (1, C, 1, 1),
        `running_mean` and `running_var` as (1, C, 1), and no `num_batches_tracked`, which is set to 0.
        """
        own = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        for name in self.squeezed:
            value = state.get(prefix + name)
            if name in own and isinstance(value, Tensor) and _has_more_ones(value, own[name]):
                state[prefix + name] = value.reshape(own[name].shape)
        average = state.get(prefix + "running_mean")
        if "num_batches_tracked" in own and isinstance(average, Tensor):
            zero = torch.zeros((), dtype=torch.long, device=average.device)
            state.setdefault(prefix + "num_batches_tracked", zero)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # `state_dict` is PyTorch's own copy, made for such changes.
        self.translate(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments, as `print(model)` shows them."""
        groups = f", groups={self.groups}" if "gn" in self.normalizers else ""
        names = "+".join(self.normalizers)
        sync = ", sync=True" if self.sync else ""
        relu = ", relu=True" if self.relu else ""
        return f"{self.num_features}, {names}{groups}, eps={self.eps}, momentum={self.momentum}{sync}{relu}"


def check_positive(name: str, value: int) -> int:
    """Return `value`; ValueError if it is not a positive whole number."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}: expected a positive whole number, got {value!r}")
    return number


def check_not_negative(name: str, value: float) -> float:
    """Return `value` as a float; ValueError if it is not a finite number from 0 on."""
    if not _is_real(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number that is not negative, got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: Any) -> Any:
    """Return `value`; ValueError if it is none of those of a Literal."""
    if value not in get_args(choices):
        expected = " or ".join(f'"{choice}"' for choice in get_args(choices))
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _has_more_ones(value: Tensor, own: Tensor) -> bool:
    """Whether `value` has the shape of `own` but for additional dimensions of size 1."""
    sizes, own_sizes = ([size for size in t.shape if size != 1] for t in (value, own))
    return value.dim() > own.dim() and sizes == own_sizes
