"""Building layers with random state, and the oracle that belongs to each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor, nn

import exemplar_norm
from tests import reference

# On a GPU, and under Triton's interpreter (tests/kernels), the same tests run on the kernels. The oracle and
# what it is compared with stay on the CPU.
DEVICE = os.environ.get("EXEMPLAR_TEST_DEVICE", "cpu")
FORMS: tuple[str, ...] = ("eager", "reference")
if DEVICE != "cpu":
    FORMS += ("triton",)
elif os.environ.get("TRITON_INTERPRET") == "1":
    FORMS = ("triton",)
NORMALIZERS = ("in", "ln", "bn", "gn")
SUBSETS = [order for size in range(1, 5) for order in permutations(NORMALIZERS, size)]
SPATIAL = {"NC": (), "NCL": (7,), "NCHW": (3, 5), "NCDHW": (2, 3, 2)}


@dataclass(frozen=True)
class Case:
    """One configured layer: ``build`` makes it, ``oracle`` computes the same in float64 loops."""

    kind: str = "en"  # "en" or "sn"
    channels: int = 6
    normalizers: tuple[str, ...] = ("in", "ln", "bn")
    dims: int = 2
    groups: int = 2
    eps: float = 1e-5
    options: dict = field(default_factory=dict)  # reduction, hidden, descriptor, momentum

    def build(self, dtype: torch.dtype = torch.float64, training: bool = True) -> nn.Module:
        name = {"en": "ExemplarNorm", "sn": "SwitchNorm"}[self.kind] + f"{self.dims}d"
        layer = getattr(exemplar_norm, name)(
            self.channels, self.normalizers, groups=self.groups, eps=self.eps, dtype=dtype, **self.options
        )
        return randomise(layer).train(training)

    def oracle(self, x: Tensor, state: Mapping[str, Tensor], training: bool = True) -> Tensor:
        if self.kind == "sn":
            return reference.switch_norm(
                x, state, self.normalizers, groups=self.groups, eps=self.eps, training=training
            )
        return self.oracle_with_ratio(x, state, training)[0]

    def oracle_with_ratio(self, x: Tensor, state: Mapping[str, Tensor], training: bool = True):
        return reference.exemplar_norm(
            x,
            state,
            self.normalizers,
            groups=self.groups,
            eps=self.eps,
            training=training,
            descriptor=self.options.get("descriptor", "mean"),
            correlations=self.options.get("correlations", "plain"),
            gate_rate=self.options.get("gate_rate", 1.0),
        )


def small_case(kind: str, **changes) -> Case:
    """A small case with every part in play: all four normalizers, a real reduction, a narrow gate."""
    options = {"reduction": 3, "hidden": 4} if kind == "en" else {}
    options |= changes.pop("options", {})
    return Case(**({"kind": kind, "normalizers": ("in", "ln", "bn", "gn"), "options": options} | changes))


def randomise(layer: nn.Module) -> nn.Module:
    """Random parameters and running statistics: at initialisation too much is symmetric or zero."""
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(torch.randn(value.shape))
        for name, value in layer.named_buffers():
            if name.endswith(("running_mean", "correlation_mean")):
                value.copy_(torch.randn(value.shape))
            if name.endswith(("running_var", "correlation_var")):
                value.copy_(torch.rand(value.shape) + 0.5)
    return layer


def snapshot(layer: nn.Module) -> dict[str, Tensor]:
    """A copy of the layer's state: parameters as float64 leaves that require grad, buffers as they are."""
    state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    leaves = {name for name, _ in layer.named_parameters()}
    return {
        name: value.double().requires_grad_() if name in leaves else value for name, value in state.items()
    }


def oracle_gradients(
    case: Case, x: Tensor, state: dict[str, Tensor], upstream: Tensor, training: bool = True
):
    """The oracle's output and its gradients: {"x": …, parameter name: …}."""
    leaf = x.detach().double().requires_grad_()
    y = case.oracle(leaf, state, training)
    leaves = {"x": leaf} | {name: value for name, value in state.items() if value.requires_grad}
    grads = torch.autograd.grad(y, list(leaves.values()), upstream.double(), allow_unused=True)
    zeros = [torch.zeros_like(value) for value in leaves.values()]
    return y.detach(), {name: z if g is None else g for name, g, z in zip(leaves, grads, zeros, strict=True)}


def layer_gradients(layer: nn.Module, x: Tensor, upstream: Tensor):
    """The layer's output and its gradients, named as in ``oracle_gradients``."""
    layer.to(DEVICE)
    leaf = x.detach().to(DEVICE).requires_grad_()
    y = layer(leaf)
    leaves = {"x": leaf} | dict(layer.named_parameters())
    grads = torch.autograd.grad(y, list(leaves.values()), upstream.to(DEVICE), allow_unused=True)
    zeros = [torch.zeros_like(value) for value in leaves.values()]
    layer.cpu()
    pairs = zip(leaves, grads, zeros, strict=True)
    return y.detach().cpu(), {name: (z if g is None else g).cpu() for name, g, z in pairs}


def assert_same_gradients(
    got: dict[str, Tensor], want: dict[str, Tensor], rtol: float, floor: float = 1e-3
) -> None:
    """Each gradient to ``rtol`` of its own largest entry, or of ``floor`` where that is smaller.

    The error of a sum is set by its largest terms, which stay when the sum itself cancels.
    """
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        error = (got[name].double() - expected.double()).abs().max().item()
        scale = expected.abs().max().item()
        assert error <= rtol * max(scale, floor), f"{name}: error {error:.2e} at scale {scale:.2e}"
