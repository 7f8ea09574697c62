"""Keep what Lightning says about itself out of the log."""

from __future__ import annotations

import logging
import os
import warnings

_CHATTER = (
    "💡",
    "GPU available",
    "TPU available",
    "HPU available",
    "Seed set to",
    "[rank: ",
    "Initializing distributed",
    "-----",
    "`Trainer.",
    "`Trainer(limit_",
    "Restor",
    "Loading `train_dataloader`",
    "Loaded model weights",
    "Detected KeyboardInterrupt",
)
_NOISE = (
    r".*does not have many workers.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r"Checkpoint directory .* exists and is not empty.*",
    r".*LeafSpec.*is deprecated.*",
    r"LightningCLI's args parameter is intended to run from within Python.*",
    r"You're resuming from a checkpoint that ended before the epoch ended.*",  # our sampler knows where
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*",
)


def quiet_lightning() -> None:
    """Drop promotional lines and the warnings that ask for nothing here."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
        "lightning.pytorch.utilities.rank_zero",
    ):
        logger = logging.getLogger(name)
        if _is_wanted not in logger.filters:
            logger.addFilter(_is_wanted)
    # Lightning calls what jsonargparse has deprecated; nobody here can change that.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(_CHATTER)
