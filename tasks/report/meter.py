"""How long a run trains and how many images it takes in, over all of its resumes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Meter(Callback):
    """Count the images and seconds of training; its checkpointed state makes a resumed run go on counting.

    Attributes:
        images: Images that all processes trained on.
        validating: Seconds of validation.
    """

    def __init__(self) -> None:
        self.images = 0
        self.validating = 0.0
        self._earlier = 0.0
        self._start: float | None = None
        self._validation_start = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training and validation so far."""
        return self._earlier + (0.0 if self._start is None else time.perf_counter() - self._start)

    @property
    def images_per_second(self) -> float | None:
        """Images of all processes a second of training, loading included and validation not."""
        training = self.seconds - self.validating
        return self.images / training if self.images and training > 0 else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch (images, …); all processes have equal ones."""
        self.images += len(batch[0]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the validation."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it; the check before training is none of the run's time."""
        if not trainer.sanity_checking:
            self.validating += time.perf_counter() - self._validation_start

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._earlier, self._start = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run adds to."""
        return {"images": self.images, "validating": self.validating, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self.images, self.validating = state_dict["images"], state_dict["validating"]
        self._earlier = state_dict["seconds"]
