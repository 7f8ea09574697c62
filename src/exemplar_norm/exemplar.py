"""Exemplar Normalization: its map (m, v) ↦ (A, B) and the parameters of that map.

Legend: N samples, C channels, K normalizers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from exemplar_norm.backends import use_reference, use_triton
from exemplar_norm.base import (
    DEFAULT_NORMALIZERS,
    MomentLayer,
    check_choice,
    check_not_negative,
    check_positive,
)
from exemplar_norm.gate import Correlations, Descriptor, Gate, Start, largest_divisor
from exemplar_norm.kernels.exemplar_map import MapParameters, MapSettings, exemplar_map
from exemplar_norm.moments import Moments
from exemplar_norm.normalizers import Statistics


class ExemplarNorm(MomentLayer):
    """Exemplar Normalization: every sample mixes the normalizers in its own ratio.

    Y = Σ_k [ γ_k · λ_k · (X − μ_k) / sqrt(σ²_k + ε) + β_k ],    λ = gate(m, v) per sample

    The gate sees the pooled input m through every normalizer, x̂_k = (m − μ_k) / sqrt(σ²_k + ε). For "in"
    that row is zero by definition; `descriptor="mean_std"` lets it speak too, by appending
    sqrt((v + ε) / (σ²_k + ε)). β_k stands outside λ, as in the published equation.

    Parameters: `weight` γ (K, C) of ones, `bias` β (K, C) of zeros, `gate`; with "bn" the buffers of
    `nn.BatchNorm2d`.

    Args:
        num_features: C, the size of dimension 1 of the input.
        normalizers: the K normalizers, of "in", "ln", "bn", "gn".
        reduction: r of the gate; where C is not a multiple of it, the largest divisor of C below it.
        reduced: least number of channels C/r that the gate's reduction is to leave: r is at most C / reduced.
        hidden: width of the gate's hidden layer.
        groups: groups of "gn"; it has to divide C where "gn" is among the normalizers.
        descriptor: what the gate sees: "mean" (published) or "mean_std" (our extension).
        correlations: what the gate's linear layers see of v: "plain" (published), "standardised" over the
            training samples or "scale_free" within the sample (our extensions, see `Gate`).
        gate_start: of FC₂'s weight: "zero", so that λ is 1/K at the first step, or "random".
        gate_rate: factor on the gradients that FC₂ gets; with plain SGD, on its learning rate. None is 1, and
            1/C once the function of a trained network is put into the layer, see `slow_gate`.
        eps: ε.
        momentum: of the running averages of "bn"; None for the cumulative average.
        sync: whether "bn" spans all ranks of `process_group` in training, whatever the sizes on each.
        process_group: those ranks; None for all.
        device: where parameters are created.
        dtype: of the parameters.

    Shape: (N, C, *spatial) → the same, in the input's dtype and memory format.

    Raises:
        ValueError: an argument, or an input's rank, channels or dtype, is not as expected.

    Source: Zhang et al., *Exemplar Normalization for Learning Deep Representation*, CVPR 2020,
    arXiv:2003.08761, as we read the paper.
    """

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str] = DEFAULT_NORMALIZERS,
        *,
        reduction: int = 32,
        reduced: int = 1,
        hidden: int = 50,
        groups: int = 32,
        descriptor: Descriptor = "mean",
        correlations: Correlations = "plain",
        gate_start: Start = "zero",
        gate_rate: float | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, normalizers, groups=groups, eps=eps, momentum=momentum,
            sync=sync, process_group=process_group, device=device, dtype=dtype,
        )  # fmt: skip
        self.descriptor = check_choice("descriptor", descriptor, Descriptor)
        correlations = check_choice("correlations", correlations, Correlations)
        gate_start = check_choice("gate_start", gate_start, Start)
        self._rate_is_given = gate_rate is not None
        rate = 1.0 if gate_rate is None else check_not_negative("gate_rate", gate_rate)
        hidden = check_positive("hidden", hidden)
        K, C = len(self.normalizers), self.num_features
        most = max(C // check_positive("reduced", reduced), 1)
        self.reduced = reduced
        self.reduction = largest_divisor(C, min(check_positive("reduction", reduction), most))
        self.weight = nn.Parameter(torch.ones(K, C, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(K, C, device=device, dtype=dtype))
        channels = C * (2 if descriptor == "mean_std" else 1)
        self.gate = Gate(
            channels,
            K,
            self.reduction,
            hidden,
            correlations,
            gate_start,
            rate,
            device=device,
            dtype=dtype,
        )

    @property
    def correlations(self) -> Correlations:
        """What the gate's linear layers see of v."""
        return self.gate.correlations

    @property
    def gate_start(self) -> Start:
        """How FC₂ starts."""
        return self.gate.start

    @property
    def gate_rate(self) -> float:
        """Factor on the gradients of FC₂."""
        return self.gate.rate

    @property
    def given_rate(self) -> float | None:
        """What makes another layer learn as this one: its `gate_rate`, None where nothing has set it."""
        return self.gate.rate if self._rate_is_given or self.gate.rate != 1 else None

    def slow_gate(self) -> None:
        """Set `gate_rate` to 1/C, unless one was given: for a layer that is a trained layer's function.

        With γ of one normalizer alone, its λ is the scale of the whole layer, a single number into which the
        gradients of all C channels run. At the learning rate of the channels it falls to zero within some ten
        steps, and the layer's output with it; as their mean they move it no faster than the average γ.
        """
        if not self._rate_is_given:
            self.gate.rate = 1 / self.num_features

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """A = Σ_k γ_k λ_k / sqrt(σ²_k + ε), B = Σ_k γ_k λ_k x̂_k + Σ_k β_k."""
        if not use_reference(moments.mean) and self.gate.is_plain():
            return self._map_by_hand(moments)
        mean, var = moments.mean.unsqueeze(1), moments.var.unsqueeze(1)
        mu_NKC, sigma2_NKC = self.statistics(moments)
        rstd_NKC = torch.rsqrt(sigma2_NKC + self.eps)
        normed_NKC = (mean - mu_NKC) * rstd_NKC
        described = self._describe(normed_NKC, var, rstd_NKC)
        ratio_NK = self.gate(described, sync=self.sync, group=self.process_group)
        weight_NKC = ratio_NK.unsqueeze(2) * self.weight.to(mean.dtype)
        scale = (weight_NKC * rstd_NKC).sum(1)
        shift = (weight_NKC * normed_NKC).sum(1) + self.bias.to(mean.dtype).sum(0)
        return scale, shift

    def _map_by_hand(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """The same map with its backward by hand, in fewer kernels."""
        mean, var, positions = moments
        own_batch = "bn" in self.normalizers and self.training and not self.is_synced()
        settings = MapSettings(
            self.normalizers, self.groups, self.eps, self.descriptor == "mean_std", own_batch, self.gate.rate
        )
        affine = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        parameters = MapParameters(*affine, *self.gate.weights(mean.dtype))
        if use_triton(mean):
            from exemplar_norm.kernels import triton_map

            if triton_map.fits(self.num_features, parameters, settings):
                running = None
                if own_batch and self.count_batch():
                    averages = (self.running_mean, self.running_var, self.num_batches_tracked)
                    running = triton_map.Running(*averages, self.momentum, mean.shape[0] * positions)
                batch = self._given_statistics(moments, own_batch) if not own_batch else None
                found = triton_map.exemplar_map(mean, var, batch, running, parameters, settings)
                return self._finish(*found)
        batch = self._given_statistics(moments, own_batch)
        return self._finish(*exemplar_map(mean, var, batch, parameters, settings))

    def _finish(
        self, scale: Tensor, shift: Tensor, ratio: Tensor, correlations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A and B, once the gate's averages and hooks have had what they ask for."""
        self.gate.follow(correlations, self.sync, self.process_group)
        if self.gate._forward_hooks:
            self.gate(ratio, ratio=ratio)  # for the hooks alone
        return scale, shift

    def _given_statistics(self, moments: Moments, own_batch: bool) -> Statistics | None:
        if "bn" not in self.normalizers:
            return None
        if own_batch:  # the map itself takes their gradient
            moments = Moments(moments.mean.detach(), moments.var.detach(), moments.positions)
        return self.batch_statistics(moments)

    def _describe(self, normed_NKC: Tensor, var_N1C: Tensor, rstd_NKC: Tensor) -> Tensor:
        if self.descriptor == "mean":
            return normed_NKC
        return torch.cat([normed_NKC, torch.sqrt(var_N1C + self.eps) * rstd_NKC], 2)

    def extra_repr(self) -> str:
        """The arguments, as `print(model)` shows them."""
        usual = {"descriptor": "mean", "correlations": "plain", "gate_start": "zero", "gate_rate": 1.0}
        others = "".join(
            f", {name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value
        )
        return f"{super().extra_repr()}, reduction={self.reduction}{others}"


class ExemplarNorm1d(ExemplarNorm):
    """`ExemplarNorm` for inputs (N, C) and (N, C, L)."""

    ranks = (2, 3)


class ExemplarNorm2d(ExemplarNorm):
    """`ExemplarNorm` for inputs (N, C, H, W)."""

    ranks = (4,)


class ExemplarNorm3d(ExemplarNorm):
    """`ExemplarNorm` for inputs (N, C, D, H, W)."""

    ranks = (5,)
