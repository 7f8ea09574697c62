"""What training sees of every sample: loss and prediction of an epoch, and how suspicious its label is.

Shapes: N samples of a batch, C classes, M samples of the training set.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.noisy_labels.detection import (
    clean_fit,
    label_precision,
    label_recall,
    memorised_share,
    noise_auroc,
)
from tasks.noisy_labels.noise import Labels
from tasks.noisy_labels.processes import from_all_processes
from tasks.noisy_labels.suspects import label_scores
from tasks.preflight import is_first_process

_COLUMNS = 4
_LARGE = 1e30
"""In place of a loss that is not a number: it is larger than any other, as in Co-teaching."""


class SampleRecord:
    """Per-sample values from the forward passes of training; no pass is made for them.

    They are those under the augmentation, and in the mode, of training. A sample that comes several times in
    an epoch counts once, as it came last. With several processes each gets the values of all.

    Args:
        num_samples: M.

    Attributes:
        seen: (M) whether the sample was seen in the last epoch.
        loss: (M) cross-entropy with the given label in the last epoch; NaN for a sample that was not seen.
        predicted: (M) class that was predicted; −1 for a sample that was never seen.
        selected: (M) whether a method that selects samples trained on it.
        selects: Whether the method selects samples.
    """

    def __init__(self, num_samples: int) -> None:
        self.loss = np.full(num_samples, np.nan, np.float32)
        self.predicted: Labels = np.full(num_samples, -1, np.int64)
        self.seen = np.zeros(num_samples, bool)
        self.selected = np.zeros(num_samples, bool)
        self.selects = False
        self._score_sum = np.zeros(num_samples, np.float32)
        self._score_count = np.zeros(num_samples, np.int32)
        self._indices: list[Tensor] = []
        self._rows: list[Tensor] = []

    @torch.no_grad()
    def add(
        self, logits_NC: Tensor, given_N: Tensor, indices_N: Tensor, selected_N: Tensor | None = None
    ) -> None:
        """Take in a batch of a training step; nothing is fetched from the device."""
        log_p_NC = torch.log_softmax(logits_NC.detach().float(), dim=1)
        loss_N = torch.nn.functional.nll_loss(log_p_NC, given_N, reduction="none")
        self.selects |= selected_N is not None
        columns = [
            loss_N,
            log_p_NC.argmax(dim=1),
            label_scores(log_p_NC.exp(), given_N),
            torch.zeros_like(loss_N) if selected_N is None else selected_N,
        ]
        self._rows.append(torch.stack([column.float() for column in columns], dim=1))
        self._indices.append(indices_N)

    def finish(self) -> None:
        """End an epoch; called in all processes."""
        indices, rows = (pending.numpy() for pending in self._pending())
        self._indices, self._rows = [], []
        if not len(rows):
            return
        self.seen[:] = False
        self.seen[indices] = True
        self.loss[:] = np.nan
        self.loss[indices] = rows[:, 0]
        self.predicted[indices] = rows[:, 1].astype(np.int64)
        np.add.at(self._score_sum, indices, np.nan_to_num(rows[:, 2], nan=1.0))
        np.add.at(self._score_count, indices, 1)
        self.selected[:] = False
        self.selected[indices] = rows[:, 3] > 0

    @property
    def score(self) -> NDArray[np.float32]:
        """(M) mean suspicion over all epochs so far; 0 for a sample that was never seen."""
        return np.divide(self._score_sum, np.maximum(self._score_count, 1), dtype=np.float32)

    def metrics(self, given: Labels, true: Labels) -> dict[str, float]:
        """What the last epoch did with the wrong labels; shares of nothing are left out."""
        seen = self.seen
        given, true, predicted = given[seen], true[seen], self.predicted[seen]
        values = {
            "memorised": memorised_share(predicted, given, true),
            "clean_fit": clean_fit(predicted, given, true),
            "noise_auroc_loss": noise_auroc(
                np.nan_to_num(self.loss[seen], nan=_LARGE, posinf=_LARGE), given, true
            ),
            "noise_auroc_suspects": noise_auroc(self.score[seen], given, true),
        }
        if self.selects:
            values["selection_precision"] = label_precision(self.selected[seen], given, true)
            values["selection_recall"] = label_recall(self.selected[seen], given, true)
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def _pending(self) -> tuple[Tensor, Tensor]:
        """Indices and rows of the epoch so far, of all processes."""
        device = self._rows[0].device if self._rows else torch.device("cpu")
        indices = torch.cat(self._indices or [torch.zeros(0, dtype=torch.int64, device=device)])
        rows = torch.cat(self._rows or [torch.zeros(0, _COLUMNS, device=device)])
        return from_all_processes(indices).cpu(), from_all_processes(rows).cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as plain tensors; called in all processes."""
        indices, rows = self._pending()
        arrays = {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}
        return {**arrays, "pending_indices": indices, "pending_rows": rows}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on from a checkpoint, within an epoch too; the first process takes what the epoch saw so far.

        Args:
            state: See `state_dict`.
            device: Where training computes.

        Raises:
            ValueError: It is that of another training set.
        """
        for name, array in self._arrays().items():
            if state[name].shape != array.shape:
                raise ValueError(
                    f"record of the samples: expected {len(array)} samples, got {len(state[name])}"
                )
            array[:] = state[name].numpy()
        own = slice(None) if is_first_process() else slice(0)
        self._indices = [state["pending_indices"][own].to(device)]
        self._rows = [state["pending_rows"][own].to(device)]

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "seen": self.seen,
            "loss": self.loss,
            "predicted": self.predicted,
            "selected": self.selected,
            "score_sum": self._score_sum,
            "score_count": self._score_count,
        }
