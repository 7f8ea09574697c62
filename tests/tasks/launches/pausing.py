"""A run that waits at a step until a test lets it go on, so that what the test does comes in time."""

import os
import time
from pathlib import Path

from pytorch_lightning.callbacks import Callback

VARIABLE = "PAUSE"


class Pause(Callback):
    """Before step n of training, leave a file `here-<rank>` and wait for `go`, where PAUSE is "n:folder"."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        at, _, folder = os.environ.get(VARIABLE, "").partition(":")
        if folder and trainer.global_step == int(at):
            Path(folder, f"here-{trainer.global_rank}").touch()
            while not Path(folder, "go").exists():
                time.sleep(0.05)


class Paused:
    """The test's side: `variables` for the processes, `reached(ranks)` to wait for, `go()`."""

    def __init__(self, folder, step):
        self.folder = folder
        self.variables = {VARIABLE: f"{step}:{folder}"}

    def reached(self, ranks=2):
        return all((self.folder / f"here-{rank}").exists() for rank in range(ranks))

    def go(self):
        (self.folder / "go").touch()
