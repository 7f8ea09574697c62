"""How a batch becomes a loss: one network with any loss, forward correction.

Shapes: N samples of a batch, C classes, V views, M samples of the training set, F numbers a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tasks.noisy_labels.mixing import Mixing, mixed_loss, mixup
from tasks.noisy_labels.sample_loss import SampleLoss, check_number
from tasks.noisy_labels.transition import ForwardCorrection, estimate_transition

Batch = tuple[Tensor, Tensor, Tensor]
TrainingPass = Callable[[Callable[[Tensor, Tensor], Tensor]], Tensor]
"""From a function of (images, given labels), (N, F), to its values on the whole training set, (M, F)."""


class Step(NamedTuple):
    """What a training step found.

    Attributes:
        loss: What is minimised.
        logits_NC: Outputs for the samples, for the record.
        given_N: Their given labels.
        indices_N: Their numbers in the training set.
        selected_N: Whether each is trained on; None where all are.
    """

    loss: Tensor
    logits_NC: Tensor
    given_N: Tensor
    indices_N: Tensor
    selected_N: Tensor | None = None


class Learner(ABC):
    """A method of learning with noisy labels; not a module, so that what it remembers is no parameter.

    Args:
        networks: The networks to train.
        aux_weight: Weight of the losses of auxiliary heads.
    """

    networks_needed: ClassVar[int] = 1
    views: ClassVar[int] = 1
    """Views of each training image that a batch has to hold."""
    ensemble: ClassVar[bool] = False
    """Whether the networks are evaluated by their mean logits; else the first is."""

    def __init__(self, networks: Sequence[nn.Module], aux_weight: float) -> None:
        self.networks, self.aux_weight = list(networks), aux_weight

    @abstractmethod
    def step(self, batch: Batch, epoch: float) -> Step:
        """Loss of a batch; `epoch` counts from 0, with the share of it that is done."""

    def start_epoch(self, epoch: int, training_pass: TrainingPass) -> None:
        """What is done before an epoch, in all processes: most methods need nothing."""
        return

    def to(self, device: torch.device) -> None:
        """Move what is remembered, if anything is."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What has to be in a checkpoint beside the networks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        return

    def over_heads(self, outputs: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """A loss of the logits, and that of the auxiliary heads' by their weight."""
        logits, *others = heads(outputs)
        total = loss(logits)
        for other in others:
            total = total + self.aux_weight * loss(other)
        return total


def heads(outputs: Any) -> list[Tensor]:
    """The logits, then those of the auxiliary heads, of what a network returns."""
    return [outputs] if isinstance(outputs, Tensor) else [logits for logits in outputs if logits is not None]


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks in evaluation mode and without gradients, so that running statistics stay as they are."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class LossLearner(Learner):
    """One network that minimises a loss, on mixed images where α is positive.

    Under mixup each sample is recorded once, by the mixed image of which it is the greater share. A loss with
    a memory is told what is predicted for the images as they are, by a pass in evaluation mode.

    Args:
        networks: The network.
        aux_weight: See Learner.
        loss: The loss.
        alpha: α of mixup; 0 for none.
    """

    def __init__(
        self, networks: Sequence[nn.Module], aux_weight: float, loss: SampleLoss, alpha: float = 0.0
    ) -> None:
        super().__init__(networks, aux_weight)
        self.loss, self.alpha = loss, alpha

    def step(self, batch: Batch, epoch: float) -> Step:
        """The mean loss."""
        images, given, indices = batch
        mixed, mixing = mixup(images, self.alpha) if self.alpha else (images, None)
        outputs = self.networks[0](mixed)
        logits = heads(outputs)[0].detach()
        if self.loss.remembers:
            if mixing:
                with evaluating(self.networks):
                    self.loss.remember(heads(self.networks[0](images))[0], indices)
            else:
                self.loss.remember(logits, indices)
        losses = self.over_heads(outputs, lambda z: sample_losses(self.loss, z, given, indices, mixing))
        greater = greater_share(indices, mixing)
        return Step(losses.mean(), logits, given[greater], indices[greater])

    def to(self, device: torch.device) -> None:
        """Move the loss."""
        self.loss.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss, such as ELR's memory."""
        return self.loss.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load it."""
        self.loss.load_state_dict(state)


class ForwardLearner(LossLearner):
    """Forward correction, by a given matrix or by one that is estimated after some epochs of cross-entropy.

    Args:
        networks: The network.
        aux_weight: See Learner.
        loss: The loss.
        alpha: α of mixup; 0 for none.
        warm_up: Epochs before the estimate.
        percentile: See `estimate_transition`.
        is_given: Whether the loss has its matrix.
    """

    loss: ForwardCorrection

    def __init__(
        self,
        networks: Sequence[nn.Module],
        aux_weight: float,
        loss: ForwardCorrection,
        alpha: float = 0.0,
        warm_up: int = 10,
        percentile: float = 97.0,
        is_given: bool = False,
    ) -> None:
        super().__init__(networks, aux_weight, loss, alpha)
        check_number("warm_up", warm_up, 1)
        check_number("percentile", percentile, 0, 100, open_low=True)
        self.warm_up, self.percentile, self.has_matrix = warm_up, percentile, is_given

    def start_epoch(self, epoch: int, training_pass: TrainingPass) -> None:
        """Estimate the matrix once the warm-up is over."""
        if self.has_matrix or epoch < self.warm_up:
            return
        network = self.networks[0]
        p_MC = training_pass(lambda images, given: torch.softmax(heads(network(images))[0].float(), dim=1))
        p_MC = p_MC[p_MC.isfinite().all(dim=1)]  # without images that cannot be read
        self.loss.set_transition(estimate_transition(p_MC, self.percentile))
        self.has_matrix = True

    def state_dict(self) -> dict[str, Any]:
        """The matrix, and whether there is one."""
        return {"loss": super().state_dict(), "has_matrix": self.has_matrix}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load both."""
        super().load_state_dict(state["loss"])
        self.has_matrix = bool(state["has_matrix"])


def sample_losses(
    loss: SampleLoss, logits_NC: Tensor, given_N: Tensor, indices_N: Tensor, mixing: Mixing | None
) -> Tensor:
    """Losses (N), of mixed images where they are."""
    if mixing is None:
        losses: Tensor = loss(logits_NC, given_N, indices_N)
        return losses
    return mixed_loss(loss, logits_NC, given_N, mixing, indices_N)


def greater_share(indices_N: Tensor, mixing: Mixing | None) -> Tensor:
    """For each mixed image, the place of the sample that has the greater share in it."""
    is_partner = mixing is not None and mixing.share < 0.5
    return (
        mixing.partner_N if mixing and is_partner else torch.arange(len(indices_N), device=indices_N.device)
    )
