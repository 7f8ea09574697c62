"""Early-learning regularisation: a memory of what was predicted for each sample, on every process the same.

Shapes: N samples of a batch, C classes, M samples of the training set.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tasks.noisy_labels.processes import from_all_processes
from tasks.noisy_labels.sample_loss import LabelLoss, check_number, log_probabilities

_LEAST = 1e-4  # of a probability, as in the authors' code; keeps the logarithm finite


class EarlyLearning(LabelLoss):
    """−log p_y + λ · log(1 − Σ_c p_c t_c) (Liu et al., arXiv:2007.00151).

    t, the sample's row of the memory, is an average of what was predicted for it: `remember` sets
    t ← β t + (1 − β) p, before the loss of the same step. t starts at 0 and carries no gradient; p is clamped
    to [10⁻⁴, 1 − 10⁻⁴] in both places, and sums to 1 again in t.

    With several processes, `remember` gathers the predictions of all in every step, so that each holds the
    whole memory, the same on all to the last bit, and shards may change between epochs. A sample that comes
    several times in a step counts once, as it came last in the order of the processes.

    The memory is neither a parameter nor a buffer, which DDP would send around in every step and averages of
    weights would average; it is part of the state_dict, and lives on the device of the logits. It takes
    M · C numbers: 13 MB for 66,000 samples of 50 classes; 9.6 GB, in float16 4.8 GB, for 2.4 million of 1000.

    Args:
        num_samples: M.
        num_classes: C.
        beta: β, in [0, 1).
        strength: λ; 0 is cross-entropy. 3 is the setting for CIFAR-10 and WebVision.
        memory: Type of the stored numbers; the average is computed in float32.
    """

    remembers = True

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        beta: float = 0.7,
        strength: float = 3.0,
        memory: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__()
        check_number("beta", beta, 0, 1)
        check_number("strength", strength, 0)
        if beta == 1:
            raise ValueError("beta: expected a number below 1, got 1, with which nothing is ever remembered")
        types = {"float32": torch.float32, "float16": torch.float16}
        if memory not in types:
            raise ValueError(f"memory: expected one of {', '.join(types)}, got {memory!r}")
        self.beta, self.strength = beta, strength
        self.memory_MC = torch.zeros(num_samples, num_classes, dtype=types[memory])

    @torch.no_grad()
    def remember(self, logits_NC: Tensor, indices_N: Tensor) -> None:
        """Move the rows of these samples towards what is predicted; called in all processes.

        Args:
            logits_NC: Outputs for the samples as they are; under mixup, those for the unmixed images.
            indices_N: Numbers of the samples in the training set.
        """
        p_NC = _clamped(log_probabilities(logits_NC)).float()
        p_NC = p_NC / p_NC.sum(dim=1, keepdim=True)
        indices_N, p_NC = from_all_processes(indices_N.to(p_NC.device)), from_all_processes(p_NC)
        memory_MC = self._memory_on(p_NC.device)
        # Copies of a sample all write the same row, as the order of writes is undefined on a GPU.
        latest_NC = p_NC[_last_place(indices_N)]
        mean_NC = self.beta * memory_MC[indices_N].float() + (1 - self.beta) * latest_NC
        memory_MC[indices_N] = mean_NC.to(memory_MC.dtype)

    def per_label(self, log_p_NC: Tensor) -> Tensor:
        """Cross-entropy with each label."""
        return -log_p_NC

    def losses(self, log_p_NC: Tensor, targets: Tensor, indices_N: Tensor | None) -> Tensor:
        """Losses (N); the memory is read and not written.

        Raises:
            ValueError: There are no indices.
        """
        if indices_N is None:
            raise ValueError("indices: expected the numbers (N) of the samples, got None")
        t_NC = self._memory_on(log_p_NC.device)[indices_N].to(log_p_NC.dtype)
        agreement = (_clamped(log_p_NC) * t_NC).sum(dim=1)
        return super().losses(log_p_NC, targets, indices_N) + self.strength * torch.log1p(-agreement)

    def get_extra_state(self) -> Tensor:
        """The memory, for the state_dict."""
        return self.memory_MC

    def set_extra_state(self, state: Tensor) -> None:
        """Load the memory.

        Raises:
            ValueError: It is that of another training set.
        """
        if state.shape != self.memory_MC.shape:
            raise ValueError(
                f"memory of the loss: expected (samples, classes) {tuple(self.memory_MC.shape)}, "
                f"got {tuple(state.shape)}"
            )
        self.memory_MC.copy_(state)

    def _memory_on(self, device: torch.device) -> Tensor:
        self.memory_MC = self.memory_MC.to(device)
        return self.memory_MC


def _clamped(log_p_NC: Tensor) -> Tensor:
    return log_p_NC.exp().clamp(_LEAST, 1 - _LEAST)


def _last_place(indices_N: Tensor) -> Tensor:
    """For each place, the last one that holds the same index."""
    ordered, places = indices_N.sort(stable=True)
    return places[torch.searchsorted(ordered, indices_N, right=True) - 1]
