"""SSN's way from a soft mixture to a single normalizer, over the steps of a run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from exemplar_norm import set_sparsity


class SparsitySchedule(Callback):
    """Grow the radius of sparsestmax linearly with the optimiser steps, up to one-hot in the last one.

    A function of the step alone: a resumed run goes on where it was.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the radius for the step."""
        set_sparsity(
            pl_module, min((trainer.global_step + 1) / float(trainer.estimated_stepping_batches), 1.0)
        )
