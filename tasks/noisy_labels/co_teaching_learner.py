"""The training step of Co-teaching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tasks.noisy_labels.co_teaching import co_teach, remember_rate
from tasks.noisy_labels.learners import Batch, Learner, Step, greater_share, heads, sample_losses
from tasks.noisy_labels.losses import CrossEntropy
from tasks.noisy_labels.mixing import mixup


class CoTeachingLearner(Learner):
    """Co-teaching: each of two networks takes the samples of smallest loss for the other.

    Both are updated in one step by the sum of their losses. The first is evaluated.

    Args:
        networks: Two networks.
        aux_weight: See Learner.
        alpha: α of mixup; 0 for none. Both see the same mixed images.
        forget_rate: τ: the noise rate, or an estimate of it.
        gradual_epochs: T_k, see `remember_rate`.
    """

    networks_needed = 2

    def __init__(
        self,
        networks: Sequence[nn.Module],
        aux_weight: float,
        alpha: float = 0.0,
        forget_rate: float = 0.2,
        gradual_epochs: float = 10.0,
    ) -> None:
        super().__init__(networks, aux_weight)
        remember_rate(0, forget_rate, gradual_epochs)
        self.alpha, self.forget_rate, self.gradual_epochs = alpha, forget_rate, gradual_epochs
        self.loss = CrossEntropy()

    def step(self, batch: Batch, epoch: float) -> Step:
        """The mean losses of both on what the other chose."""
        images, given, indices = batch
        mixed, mixing = mixup(images, self.alpha) if self.alpha else (images, None)
        outputs = [network(mixed) for network in self.networks]
        losses = [
            self.over_heads(out, lambda z: sample_losses(self.loss, z, given, indices, mixing))
            for out in outputs
        ]
        rate = remember_rate(int(epoch), self.forget_rate, self.gradual_epochs)
        for_first, for_second = co_teach(losses[0], losses[1], rate)
        selected = torch.zeros_like(given, dtype=torch.bool)
        selected[for_first] = True
        greater = greater_share(indices, mixing)
        loss = losses[0][for_first].mean() + losses[1][for_second].mean()
        return Step(loss, heads(outputs[0])[0].detach(), given[greater], indices[greater], selected)
