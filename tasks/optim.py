"""Parameter groups, optimisers and per-step schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from exemplar_norm.switch import SparseSwitchNorm

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "step", "exponential", "onecycle", "poly", "constant"]

_TORCH_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms, SyncBatchNorm included
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: one of torch's own, or built on a class of exemplar_norm."""
    ours = any(base.__module__.partition(".")[0] == "exemplar_norm" for base in type(module).__mro__)
    return ours or isinstance(module, _TORCH_NORMS)


def parameter_groups(
    model: nn.Module, lr: float, decay: Mapping[str, float], mixture_lr: float = 0.1
) -> list[dict[str, Any]]:
    """Split the trainable parameters into weights, normalizers (gates included), SSN's mixtures and biases.

    `decay` holds the weight decay of "weights", "normalizers" and "biases", 0 where it names none; mixtures
    never decay, and their learning rate is `mixture_lr` times `lr`. Every parameter is in exactly one group;
    empty groups are left out.
    """
    # Found by the type of the module that owns them: names like "bn1" or "downsample.1" say nothing certain.
    normalizers = {id(p) for module in model.modules() if is_norm(module) for p in module.parameters()}
    mixtures = {
        id(p)
        for m in model.modules()
        if isinstance(m, SparseSwitchNorm)
        for p in (m.mean_weight, m.var_weight)
    }
    groups = ("weights", "normalizers", "mixtures", "biases")
    split: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in mixtures:
            split["mixtures"].append(parameter)
        elif id(parameter) in normalizers:
            split["normalizers"].append(parameter)
        elif name.endswith("bias"):
            split["biases"].append(parameter)
        else:
            split["weights"].append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "lr": lr * (mixture_lr if name == "mixtures" else 1.0),
            "weight_decay": 0.0 if name == "mixtures" else decay.get(name, 0.0),
        }
        for name, parameters in split.items()
        if parameters
    ]


def build_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool
) -> Optimizer:
    """SGD or AdamW over `groups`, which carry their learning rates; `momentum` is AdamW's first beta."""
    if name == "sgd":
        return SGD(groups, momentum=momentum, nesterov=nesterov)
    return AdamW(groups, betas=(momentum, 0.999))


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor at each optimiser step, as a function of the step alone.

    A closed form (unlike chained schedulers) holds no state, so a resumed run, and one whose length was
    changed meanwhile, get the factor that belongs to the step.

    Attributes:
        name: Shape after the warm-up; "onecycle" has its own: it rises over the warm-up (30 % of all
            steps where none is given) and falls to almost 0, both along a cosine (Smith & Topin,
            arXiv:1708.07120).
        total: Number of steps in all.
        warmup: Number of steps of the linear warm-up.
        milestones: Steps at which "step" multiplies by `gamma`.
        epoch: Steps of an epoch, after each of which "exponential" multiplies by `gamma`.
        gamma: See `milestones` and `epoch`.
        power: Exponent of "poly".
        floor: Factor at the end of "cosine" and "poly".
    """

    name: ScheduleName
    total: int
    warmup: int = 0
    milestones: Sequence[int] = ()
    epoch: int = 1
    gamma: float = 0.1
    power: float = 0.9
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """Factor on the learning rate at `step`, counted from 0."""
        if self.name == "onecycle":
            return self._one_cycle(step)
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.name == "step":
            return self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.name == "exponential":
            return self.gamma ** (step // self.epoch)
        if self.name == "constant":
            return 1.0
        progress = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        shape = _half_cosine(progress) if self.name == "cosine" else (1 - progress) ** self.power
        return self.floor + (1 - self.floor) * shape

    def _one_cycle(self, step: int, start: float = 1 / 25, end: float = 1 / 25e4) -> float:
        peak = (self.warmup or 0.3 * self.total) - 1
        if step < peak:
            return 1 + (start - 1) * _half_cosine(step / peak)
        return end + (1 - end) * _half_cosine(min((step - peak) / max(self.total - 1 - peak, 1), 1.0))


def _half_cosine(progress: float) -> float:
    """1 at progress 0, 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def build_scheduler(optimizer: Optimizer, factor: Callable[[int], float]) -> LambdaLR:
    """Torch scheduler that multiplies every group's learning rate by `factor(step)`."""
    # A plain function: LambdaLR would copy an object's attributes into the checkpoint, and back over the
    # schedule of a run that is resumed with another length.
    return LambdaLR(optimizer, lambda step: factor(step))
