"""Reading checkpoints before training starts: what they hold, and whether it fits the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.base import BaseModule
from tasks.callbacks import BestCheckpoint
from tasks.data import BaseDataModule
from tasks.errors import UserError
from tasks.models import norm_settings
from tasks.run_folder import RunFolder
from tasks.weight_files import INPUTS, read_pickle


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running any code that it may hold.

    Raises:
        UserError: The file is no checkpoint of Lightning, is cut short, or holds more than plain data.
    """
    checkpoint = read_pickle(path)
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
    ):
        raise UserError(
            f"{path} is not a checkpoint of a training run: it has no 'state_dict' of Lightning's"
        )
    return checkpoint


def check_architecture(path: Path, checkpoint: dict[str, Any], model: BaseModule) -> None:
    """Compare the settings, names and shapes of a checkpoint with a network's.

    Settings too, as normalizers of different kinds can have parameters of the same names and shapes.

    Raises:
        UserError: They differ; the line says which, and counts the parameters.
    """
    told = _other_settings(checkpoint.get("hyper_parameters", {}), model) or _other_parameters(
        checkpoint["state_dict"], model.state_dict()
    )
    if told:
        folder = RunFolder.of_checkpoint(path)
        hint = f"; its run was configured by {folder.config}" if folder else ""
        raise UserError(f"{path} is of another architecture: {told}{hint}")


def _other_settings(stored: dict[str, Any], model: BaseModule) -> str:
    own: dict[str, Any] = model.hparams  # type: ignore[assignment]
    differing = []
    for key in model.architecture:
        mine: Any = own.get(key)
        theirs: Any = stored.get(key)
        if key == "norm_options":
            if own["norm"] != stored.get("norm"):
                continue  # said already
            mine, theirs = (norm_settings(own["norm"], options) for options in (mine, theirs))
        if mine != theirs:
            differing.append(f"expected {key} {mine}, got {theirs}")
    return "; ".join(differing)


def _other_parameters(stored: dict[str, Any], own: dict[str, Any]) -> str:
    kinds = {
        "missing": [key for key in own if key not in stored],
        "unexpected": [key for key in stored if key not in own],
        "of another shape": [key for key in own if key in stored and own[key].shape != stored[key].shape],
    }
    told = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    return f"parameters {'; '.join(told)}" if told else ""


def check_classes(path: Path, checkpoint: dict[str, Any], data: BaseDataModule) -> None:
    """Compare the classes that a checkpoint was trained on with the data's, where it says them.

    Raises:
        UserError: A class has another name.
    """
    stored = checkpoint.get(INPUTS, {}).get("class_names", [])
    for index, name in enumerate(stored):
        if data.class_name(index) != name:
            raise UserError(
                f"{path} is of other classes: expected class {index} to be {name!r}, got "
                f"{data.class_name(index)!r} (data.names has to be as it was, too)"
            )


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Number of finished training epochs (the checkpoint is written before the epoch counts as completed)."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def batches_done(checkpoint: dict[str, Any]) -> int:
    """Batches that each process has had of the next epoch; 0 at the end of one."""
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]["current"]
    return int(batches["completed"]) if epochs["started"] > epochs["processed"] else 0


def is_finished(checkpoint: dict[str, Any] | None, max_epochs: int | None) -> bool:
    """Whether a checkpoint has all the epochs of a run of `max_epochs` (−1: without end)."""
    return bool(checkpoint and max_epochs and 0 < max_epochs <= epochs_done(checkpoint))


def best_score(checkpoint: dict[str, Any]) -> float | None:
    """The best value of the monitored validation metric so far."""
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith(BestCheckpoint.__name__) and state.get("best_model_score") is not None:
            return float(state["best_model_score"])
    return None
