"""Forward correction: the loss of noisy labels under a transition matrix, given or estimated.

Shapes: N samples, C classes. T (C, C): T_jc is the probability that a sample of class j is labelled c.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.noisy_labels.sample_loss import SampleLoss


class ForwardCorrection(SampleLoss):
    """−log Σ_j p_j T_jy (Patrini et al., arXiv:1609.03683).

    Targets are class indices; under mixup see `mixed_loss`. The sum is taken over logarithms, so that it
    neither underflows nor loses its gradient.

    Args:
        num_classes: C.
        transition: T; without one, the loss is cross-entropy until `set_transition` is called.
    """

    soft = False
    log_transition_CC: Tensor

    def __init__(
        self, num_classes: int, transition: Sequence[Sequence[float]] | Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("log_transition_CC", torch.eye(num_classes).log())
        if transition is not None:
            self.set_transition(torch.as_tensor(transition, dtype=torch.float64))

    def set_transition(self, transition_CC: Tensor) -> None:
        """Use another T.

        Raises:
            ValueError: It is not a stochastic (C, C) matrix, or a label has probability 0 in all classes.
        """
        shape, expected = tuple(transition_CC.shape), tuple(self.log_transition_CC.shape)
        if shape != expected:
            raise ValueError(f"transition: expected a matrix {expected}, got a shape {shape}")
        transition_CC = transition_CC.double()
        # Estimates come in float32, and matrices in files are rounded.
        if not ((transition_CC >= 0).all() and ((transition_CC.sum(dim=1) - 1).abs() < 1e-4).all()):
            sums = transition_CC.sum(dim=1)
            raise ValueError(
                f"transition: expected rows of probabilities that sum to 1, got sums from {sums.min():g} to "
                f"{sums.max():g} and a least element of {transition_CC.min():g}"
            )
        never = (transition_CC.amax(dim=0) == 0).nonzero().flatten().tolist()
        if never:
            raise ValueError(f"transition: expected a positive number in each column, got none in {never}")
        self.log_transition_CC.copy_(transition_CC.log())

    def losses(self, log_p_NC: Tensor, targets: Tensor, indices_N: Tensor | None) -> Tensor:
        """Losses (N) of class indices."""
        return -torch.logsumexp(log_p_NC + self.log_transition_CC.T[targets.long()], dim=1)


def estimate_transition(probabilities_NC: Tensor, percentile: float = 97.0) -> Tensor:
    """Estimate T (C, C) from what a network, trained on the noisy labels, predicts for the training set.

    T_j = p(· | x_j), x_j the anchor of class j: the sample whose p_j is the given percentile of a class of
    average size, which skips its outliers; 100 takes the sample of the highest p_j. Source: Patrini et al.,
    arXiv:1609.03683, section 4.2. The percentile of all samples would, in sets of more than
    100 / (100 − percentile) classes, belong to another class.

    Args:
        probabilities_NC: Predicted probabilities.
        percentile: In (0, 100].

    Raises:
        ValueError: The percentile is outside of its range, or the probabilities are not a matrix of them.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: expected a number in (0, 100], got {percentile}")
    if probabilities_NC.ndim != 2 or not (probabilities_NC.sum(dim=1) - 1).abs().lt(1e-3).all():
        raise ValueError(
            f"probabilities: expected rows (N, C) that sum to 1, got a shape {tuple(probabilities_NC.shape)}"
        )
    samples, classes = probabilities_NC.shape
    skipped = round((1 - percentile / 100) * samples / classes)
    anchors = probabilities_NC.kthvalue(samples - skipped, dim=0).indices
    rows_CC = probabilities_NC[anchors]
    return rows_CC / rows_CC.sum(dim=1, keepdim=True)
