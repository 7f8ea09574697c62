"""Every layer of the family as a ``Case``: with random state, and the oracle that belongs to it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import exemplar_norm
from exemplar_norm.batch import BatchNorm
from tests.family import family_oracles
from tests.layers.layer_cases import Case, randomise, small_case

FAMILY = ("en", "sn", "ssn", "cbn")
WITH_BN = (*FAMILY, "bn")
MIXTURE_LOGITS = {"in": 0.15, "ln": -0.1, "bn": 0.25, "gn": 0.05}  # no ties, and all branches alive
CLASSES = {
    "en": "ExemplarNorm",
    "sn": "SwitchNorm",
    "ssn": "SparseSwitchNorm",
    "cbn": "ConditionalNorm",
}


@dataclass(frozen=True)
class FamilyCase(Case):
    """A ``Case`` that also knows "ssn" (``radius`` as a share of the circumradius), "cbn" and "bn"."""

    radius: float = 0.35

    def build(self, dtype: torch.dtype = torch.float64, training: bool = True) -> nn.Module:
        if self.kind in ("en", "sn"):
            return super().build(dtype, training)
        options = {"eps": self.eps, "dtype": dtype} | self.options
        if self.kind == "bn":
            layer: nn.Module = BatchNorm(self.channels, **options)
        elif self.kind == "cbn":
            layer = exemplar_norm.NORMS["cbn"](self.channels, dims=self.dims, **options)
        else:
            layer = exemplar_norm.NORMS["ssn"](
                self.channels, dims=self.dims, normalizers=self.normalizers, groups=self.groups, **options
            )
        randomise(layer)
        if self.kind == "ssn":
            self._set_mixture(layer)
        return layer.train(training)

    def _set_mixture(self, layer: nn.Module) -> None:
        logits = torch.tensor([MIXTURE_LOGITS[name] for name in self.normalizers])
        with torch.no_grad():
            layer.mean_weight.copy_(logits)
            layer.var_weight.copy_(-0.7 * logits)
            K = len(self.normalizers)
            layer.radius.fill_(self.radius * ((K - 1) / K) ** 0.5)

    def oracle(self, x: Tensor, state: Mapping[str, Tensor], training: bool = True) -> Tensor:
        if self.kind == "ssn":
            return family_oracles.sparse_switch_norm(
                x, state, self.normalizers, groups=self.groups, eps=self.eps, training=training
            )
        if self.kind == "cbn":
            return family_oracles.conditional_norm(x, state, eps=self.eps, training=training)
        if self.kind == "bn":
            return family_oracles.batch_norm(x, state, eps=self.eps, training=training)
        return super().oracle(x, state, training)


def family_case(kind: str, **changes) -> FamilyCase:
    """A small case of any kind with every part in play."""
    if kind in ("en", "sn"):
        return FamilyCase(**vars(small_case(kind, **changes)))
    defaults = {"normalizers": ("in", "ln", "bn", "gn")}
    if kind == "cbn":
        changes["options"] = {"hidden": 5} | changes.get("options", {})
    return FamilyCase(**({"kind": kind} | defaults | changes))
