"""Reading checkpoints before training starts: what they hold, and whether it fits the network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.errors import UserError
from tasks.run_folder import RunFolder


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running any code that it may hold.

    Raises:
        UserError: The file is no checkpoint of Lightning, is cut short, or holds more than plain data.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a checkpoint, or holds code, which is not run") from error
    except Exception as error:  # torch raises many kinds, by where the bytes stop making sense
        raise UserError(f"{path} is not a checkpoint, or one cut short ({type(error).__name__})") from error
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
    ):
        raise UserError(
            f"{path} is not a checkpoint of a training run: it has no 'state_dict' of Lightning's"
        )
    return checkpoint


def check_architecture(path: Path, checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Compare the names and shapes of a checkpoint with a network's.

    Raises:
        UserError: They differ; the line counts and names the first of them.
    """
    own, stored = model.state_dict(), checkpoint["state_dict"]
    kinds = {
        "missing": [key for key in own if key not in stored],
        "unexpected": [key for key in stored if key not in own],
        "of another shape": [key for key in own if key in stored and own[key].shape != stored[key].shape],
    }
    if not any(kinds.values()):
        return
    told = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    settings = checkpoint.get("hyper_parameters", {})
    made_with = ", ".join(f"{key} {settings[key]}" for key in ("network", "norm") if key in settings)
    folder = RunFolder.of_checkpoint(path)
    hint = f"; its run was configured by {folder.config}" if folder else ""
    raise UserError(
        f"{path} is of another architecture{f' ({made_with})' if made_with else ''}: parameters "
        f"{'; '.join(told)}{hint}"
    )


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Number of finished training epochs (the checkpoint is written before the epoch counts as completed)."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def is_finished(checkpoint: dict[str, Any] | None, max_epochs: int | None) -> bool:
    """Whether a checkpoint has all the epochs of a run of `max_epochs` (−1: without end)."""
    return bool(checkpoint and max_epochs and 0 < max_epochs <= epochs_done(checkpoint))


def best_score(checkpoint: dict[str, Any]) -> float | None:
    """The best value of the monitored validation metric so far."""
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and state.get("best_model_score") is not None:
            return float(state["best_model_score"])
    return None
