"""A finished run that is resumed: nothing is trained, but its table and its report tell what training saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.checkpoint import read_checkpoint
from tasks.noisy_labels import STATE
from tasks.noisy_labels.outcome import Outcome
from tasks.noisy_labels.samples import SampleRecord
from tasks.run_folder import RunFolder


def recall(folder: Path | None, data: Any, outcome: Outcome) -> SampleRecord:
    """The record of the samples as the last checkpoint has it; called in all processes.

    Args:
        folder: Folder of the run; None in all processes but the first, which report nothing.
        data: The data module, which gets the labels of the run.
        outcome: Where best and last values are put.
    """
    data.setup("fit")
    data.prepare_labels(folder)
    samples = SampleRecord(len(data.given_labels))
    last = RunFolder(folder).last if folder else None
    if last and last.is_file():
        state = read_checkpoint(last)[STATE]
        samples.load_state_dict(state["samples"], torch.device("cpu"))
        outcome.load_state_dict(state["outcome"])
    return samples
