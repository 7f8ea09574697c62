"""The training loop of DivideMix.

Shapes: N samples of a batch, C classes, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.noisy_labels.divide_mix import (
    clean_probability,
    confidence_penalty,
    divide_mix_loss,
    guess,
    mix_match,
    ramp,
    refine,
)
from tasks.noisy_labels.learners import Batch, Learner, Step, TrainingPass, evaluating, heads
from tasks.noisy_labels.losses import CrossEntropy
from tasks.noisy_labels.sample_loss import check_number


class DivideMixLearner(Learner):
    """DivideMix: each of two networks divides the training set for the other, which learns semi-supervised.

    After a warm-up of cross-entropy, a mixture of two Gaussians is fitted before each epoch to the losses of
    each network on the whole training set. Three things differ from the authors' code: both networks are
    updated in one step, by the sum of their losses, where there one is trained for an epoch and then the
    other; a batch holds labelled and unlabelled samples in the proportion in which they come, where there
    it holds as many of each; and what is predicted for refining and guessing comes from networks in
    evaluation mode. Evaluated by the mean logits of both, as there.

    Args:
        networks: Two networks.
        aux_weight: See Learner.
        num_classes: C.
        warm_up: Epochs of cross-entropy; 10 for CIFAR-10, 30 for CIFAR-100, 1 for WebVision.
        alpha: α of the mixing; 4 for CIFAR, 0.5 for WebVision.
        temperature: T of the sharpening.
        unlabelled_weight: λ_u; 0 for WebVision, 0 to 150 for CIFAR by the noise.
        threshold: Probability of being clean above which a sample is labelled.
        penalty: Whether confidence is penalised in the warm-up, for asymmetric noise.
    """

    networks_needed = 2
    views = 2
    ensemble = True

    def __init__(
        self,
        networks: Sequence[nn.Module],
        aux_weight: float,
        num_classes: int,
        warm_up: int = 10,
        alpha: float = 4.0,
        temperature: float = 0.5,
        unlabelled_weight: float = 25.0,
        threshold: float = 0.5,
        penalty: bool = False,
    ) -> None:
        super().__init__(networks, aux_weight)
        check_number("warm_up", warm_up, 1)
        check_number("alpha", alpha, 0, open_low=True)
        check_number("temperature", temperature, 0, open_low=True)
        check_number("unlabelled_weight", unlabelled_weight, 0)
        check_number("threshold", threshold, 0, 1)
        self.num_classes, self.warm_up, self.alpha, self.temperature = (
            num_classes,
            warm_up,
            alpha,
            temperature,
        )
        self.unlabelled_weight, self.threshold, self.penalty = unlabelled_weight, threshold, penalty
        self.loss = CrossEntropy()
        self.clean: list[Tensor] | None = None

    def start_epoch(self, epoch: int, training_pass: TrainingPass) -> None:
        """Divide the training set: `clean[k]` is for network k, from the losses of the other."""
        if epoch < self.warm_up:
            return

        def losses(images: Tensor, given: Tensor) -> Tensor:
            each = [self.loss(heads(network(images))[0], given) for network in self.networks]
            return torch.stack(each, dim=1)

        by_network = training_pass(losses).double().T
        # Images that cannot be read, and losses that are no numbers, are as bad as the worst.
        divided = [clean_probability(_finite(column).numpy()) for column in by_network]
        device = next(self.networks[0].parameters()).device
        self.clean = [torch.tensor(clean, dtype=torch.float32, device=device) for clean in reversed(divided)]

    def to(self, device: torch.device) -> None:
        """Move the division."""
        self.clean = self.clean and [clean.to(device) for clean in self.clean]

    def state_dict(self) -> dict[str, Any]:
        """The division, for a run that is resumed within an epoch."""
        return {"clean": self.clean and [clean.cpu() for clean in self.clean]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load it."""
        self.clean = state["clean"]

    def step(self, batch: Batch, epoch: float) -> Step:
        """The losses of both networks."""
        if self.clean is None:
            return self._warm_up_step(batch)
        views, given, indices = batch
        with evaluating(self.networks):
            logits = [heads(network(views.flatten(0, 1)))[0] for network in self.networks]
            p_VNC = [
                list(torch.softmax(z.float(), dim=1).view(*views.shape[:2], -1).unbind(dim=1)) for z in logits
            ]
        clean = [column[indices] for column in self.clean]
        weight = ramp(epoch, self.warm_up, self.unlabelled_weight)
        loss = sum(
            (self._loss(own, views, given, clean[own], p_VNC, weight) for own in range(2)),
            start=torch.zeros((), device=views.device),
        )
        seen = logits[0].view(*views.shape[:2], -1)[:, 0]
        return Step(loss, seen, given, indices, clean[0] > self.threshold)

    def _loss(
        self,
        own: int,
        views: Tensor,
        given: Tensor,
        clean: Tensor,
        p_VNC: list[list[Tensor]],
        weight: float,
    ) -> Tensor:
        labelled = clean > self.threshold
        # A batch without a labelled sample takes the likeliest.
        labelled[clean.argmax()] = True
        x, u = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        one_hot = torch.nn.functional.one_hot(given, self.num_classes).float()
        x_targets = refine(one_hot[x], clean[x], [p[x] for p in p_VNC[own]], self.temperature)
        parts, targets = [views[x, v] for v in range(self.views)], [x_targets] * self.views
        if len(u):
            u_targets = guess([p[u] for views_of in p_VNC for p in views_of], self.temperature)
            parts += [views[u, v] for v in range(self.views)]
            targets += [u_targets] * self.views
        mixed, mixed_targets = mix_match(torch.cat(parts), torch.cat(targets), self.alpha)
        outputs = self.networks[own](mixed)
        return self.over_heads(
            outputs, lambda z: divide_mix_loss(z, mixed_targets, self.views * len(x), weight).total
        )

    def _warm_up_step(self, batch: Batch) -> Step:
        views, given, indices = batch
        outputs = [network(views[:, 0]) for network in self.networks]
        loss = sum(
            (self.over_heads(out, lambda z: self._warm_up_losses(z, given).mean()) for out in outputs),
            start=torch.zeros((), device=views.device),
        )
        return Step(loss, heads(outputs[0])[0].detach(), given, indices)

    def _warm_up_losses(self, logits_NC: Tensor, given_N: Tensor) -> Tensor:
        losses: Tensor = self.loss(logits_NC, given_N)
        return losses + confidence_penalty(logits_NC) if self.penalty else losses


def _finite(losses: Tensor) -> Tensor:
    finite = losses[losses.isfinite()]
    worst = float(finite.max()) if len(finite) else 0.0
    return losses.nan_to_num(nan=worst, posinf=worst)
