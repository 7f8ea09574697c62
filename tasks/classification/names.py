"""Names of classes, from the files that data sets bring along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import UserError
from tasks.names import distinct


def read_names(path: Path, classes: Sequence[str]) -> list[str]:
    """Class names of a text file.

    Its lines are `<class folder> <name>, <other names>`, of which the first name is taken, or `<name>` in
    the order of the classes. They are of the first kind when one of them begins with a class folder.

    Raises:
        UserError: It cannot be read, lacks a class or has another number of lines.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.names: cannot read {path}: {error}") from error
    split = (line.partition(" ") for line in lines)
    by_folder = {folder: name.split(",")[0].strip() for folder, _, name in split if name.strip()}
    if not by_folder.keys().isdisjoint(classes):
        missing = [name for name in classes if name not in by_folder]
        if missing:
            raise UserError(
                f"data.names: expected a name for every class, got none for {missing[0]} in {path}"
            )
        return distinct([by_folder[name] for name in classes], classes)
    if len(lines) != len(classes):
        raise UserError(f"data.names: expected {len(classes)} names, one a class, got {len(lines)} in {path}")
    return distinct(lines, classes)


def read_meta(path: Path, classes: Sequence[str]) -> list[str]:
    """Class names of torchvision's `meta.bin`: `({wnid: (name, …)}, [wnid of each validation image])`.

    Raises:
        UserError: It is something else, or lacks a class.
    """
    import torch

    try:
        names = torch.load(path, weights_only=True)[0]
        return distinct([str(names[wnid][0]) for wnid in classes], classes)
    except KeyError as error:
        raise UserError(f"{path}: expected a name for every class, got none for {error.args[0]}") from error
    except Exception as error:  # whatever torch.load meets; its advice to trust the file is not passed on
        told = "expected class names as torchvision's ImageNet writes them; data.names can give others"
        raise UserError(f"{path}: {told}") from error
