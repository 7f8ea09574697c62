"""`metrics.csv`, which goes on where a run is resumed."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from tasks.loggers.forgiving import forgiving
from tasks.whole_file import whole_file


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run folder; a resumed run goes on in it.

    Args:
        folder: Run folder.
        resumed_step: Optimiser step of the checkpoint that is resumed from: the rows from that step on, which
            were logged after the checkpoint, are dropped. None starts a new file.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        # Flushed at every row, so that a killed process loses none that its checkpoint counts on.
        super().__init__(save_dir=folder, name="", version="", flush_logs_every_n_steps=1)
        self._resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Writer of the file."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.save_dir, self._resumed_step)
        return self._experiment  # type: ignore[return-value]

    # The configuration is in config.yaml already.
    log_hyperparams = rank_zero_only(lambda self, params=None: None)
    log_metrics = forgiving(CSVLogger.log_metrics)
    save = forgiving(CSVLogger.save)
    finalize = forgiving(CSVLogger.finalize)


class _AppendingWriter(ExperimentWriter):
    def __init__(self, folder: str, resumed_step: int | None) -> None:
        self._resumed_step = resumed_step
        super().__init__(folder)

    def _check_log_dir_exists(self) -> None:
        """Take over the rows before the resumed step, where Lightning's writer deletes the file."""
        path = Path(self.metrics_file_path)
        if self._resumed_step is None or not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            # A process killed while it wrote leaves a last row without its later columns.
            rows = [row for row in reader if row["step"] and int(row["step"]) < self._resumed_step]
            self.metrics_keys = list(reader.fieldnames or [])
        with whole_file(path, newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
