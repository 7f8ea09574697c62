"""A pass over the whole training set, as it is evaluated.

Shapes: N samples of a batch, M samples of the training set, L layers, K normalizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exemplar_norm import record_ratios
from exemplar_norm.exemplar import ExemplarNorm
from tasks.noisy_labels.detection import ratio_auroc
from tasks.noisy_labels.learners import TrainingPass, evaluating
from tasks.noisy_labels.noise import Labels
from tasks.noisy_labels.processes import from_all_processes

ValuesOf = Callable[[Tensor, Tensor], Tensor]
"""(images, given labels) of a batch ↦ values (N, …)."""


def training_pass(trainer: pl.Trainer, networks: Sequence[nn.Module], values_of: ValuesOf) -> Tensor:
    """Values (M, …) of every training sample, on the CPU of every process; called in all of them.

    NaN for a sample that cannot be read.

    Args:
        trainer: The trainer of the run, with its data.
        networks: The networks, in evaluation mode during the pass.
        values_of: See ValuesOf.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    rows, places = [], []
    with evaluating(networks), trainer.precision_plugin.forward_context():
        for batch in data.training_pass():
            images, given, indices = trainer.strategy.batch_to_device(batch)
            rows.append(values_of(images, given).float())
            places.append(indices)
    found = from_all_processes(torch.cat(rows)).cpu()
    values = torch.full((len(data.given_labels), *found.shape[1:]), float("nan"))
    values[from_all_processes(torch.cat(places)).cpu()] = found
    return values


def has_ratios(network: nn.Module) -> bool:
    """Whether a network has exemplar layers."""
    return any(isinstance(module, ExemplarNorm) for module in network.modules())


def ratios_of_training_set(network: nn.Module, run: TrainingPass) -> NDArray[np.float32]:
    """λ (M, L, K) of every training sample and exemplar layer."""

    def ratios(images: Tensor, given: Tensor) -> Tensor:
        with record_ratios(network) as ratio_of:
            network(images)
        return torch.stack(list(ratio_of.values()), dim=1)

    return np.asarray(run(ratios).numpy())


def ratio_auroc_of_training_set(network: nn.Module, run: TrainingPass, given: Labels, true: Labels) -> float:
    """`ratio_auroc` over the samples that can be read."""
    ratio_NLK = ratios_of_training_set(network, run)
    known = np.isfinite(ratio_NLK).all(axis=(1, 2))
    return ratio_auroc(ratio_NLK[known], given[known], true[known])
