"""Writing checkpoints so that the one before stays whole, whatever happens."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from tasks.errors import UserError


class WholeCheckpoints(TorchCheckpointIO):
    """Write under another name, wait until the bytes are on the disk, then rename.

    Lightning's own neither waits, so that a power cut can leave an empty file, nor says what is left when
    the disk is full.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: It cannot be written; the line says whether there is one from before.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        buffer = io.BytesIO()  # torch.save hides what the system says about a file
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, buffer)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            left = "the one before it is intact" if path.is_file() else "there is none from before"
            raise UserError(
                f"{path} cannot be written ({error.strerror}): {left}; make room and go on with --resume auto"
            ) from error


def _write(path: Path, buffer: io.BytesIO) -> None:
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
