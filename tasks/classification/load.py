"""`load_classifier`: a trained classifier from a run folder, a checkpoint or an exported folder."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_norm import load_weights
from tasks.classification.inputs import Inputs
from tasks.errors import UserError
from tasks.models import build_network
from tasks.networks import Architecture
from tasks.run_folder import RunFolder
from tasks.weight_files import read_weight_file

WEIGHTS = "model.safetensors"
"""Weights in an exported folder."""


class Classifier(nn.Module):
    """A network that turns inputs into class probabilities.

    Args:
        network: From inputs (N, 3, H, W) to logits (N, classes).
        architecture: What it is built from.
        inputs: Class names and preprocessing.
        epoch: Number of the epoch after which the checkpoint was written.

    Attributes:
        class_names: Name of each class.
        preprocess: From an image (PIL, or bytes (3, H, W)) to an input (3, H, W).
        config: What describes both, in plain values, and the epoch of the checkpoint.
    """

    def __init__(self, network: nn.Module, architecture: Architecture, inputs: Inputs, epoch: int) -> None:
        super().__init__()
        self.network, self.architecture, self.inputs = network, architecture, inputs
        self.class_names, self.preprocess = inputs.class_names, inputs.preprocess()
        self.config: dict[str, Any] = {**architecture._asdict(), "epoch": epoch, **asdict(inputs)}

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (N, classes) of preprocessed images (N, 3, H, W)."""
        return torch.softmax(self.network(images).float(), dim=1)


def load_classifier(path: str | os.PathLike[str]) -> Classifier:
    """Load a classifier in evaluation mode; nothing in its file is run.

    Args:
        path: A run folder (its best checkpoint), a checkpoint, or an exported folder.

    Raises:
        UserError: There is no classifier at `path`.
    """
    file = checkpoint_in(Path(path))
    found = read_weight_file(file)
    if found.made_with is None or found.config is None:
        raise UserError(f"{file}: expected a checkpoint or an export of a classifier, got a plain state dict")
    if found.config.get("ensemble"):
        raise UserError(
            f"{file}: expected a classifier of one network, got two whose mean is the prediction "
            "(divide_mix): use python -m tasks.noisy_labels predict"
        )
    inputs = Inputs.from_config(found.config, found.name)
    network = build_network(*found.made_with)  # type: ignore[arg-type]
    try:
        load_weights(network, found.state)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    return Classifier(network, found.made_with, inputs, found.config["epoch"]).eval()


def checkpoint_in(path: Path) -> Path:
    """The file of weights that a path means.

    Raises:
        UserError: There is none.
    """
    run = RunFolder(path)
    for file in (path, path / WEIGHTS, run.best, run.last):
        if file.is_file():
            return file
    expected = "a run folder, a checkpoint or an exported folder"
    wrong = "holds no checkpoint" if path.exists() else "does not exist"
    raise UserError(f"expected {expected}, got {str(path)!r}, which {wrong}")
