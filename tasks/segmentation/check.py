"""What `check-data` looks at in the pairs of a segmentation data set: it reports faults and goes on."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.errors import UserError
from tasks.images import UnreadableImage
from tasks.segmentation.data import FilesDataModule
from tasks.segmentation.labels import Labels
from tasks.segmentation.masks import BadMask
from tasks.segmentation.pairs import Pair, read_pair

SPLITS = ("train", "val")


def find_pairs(data: FilesDataModule) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs of each split, and what is wrong with the layout: no folder, no image, no mask."""
    found: dict[str, list[Pair]] = {}
    problems: list[str] = []
    for split in SPLITS:
        try:
            found[split], bare = data.layout(split).find()
        except UserError as error:
            problems.append(str(error))
            continue
        problems += [f"{image}: has no mask" for image in bare]
    return found, problems


def fault_of(pair: Pair, labels: Labels) -> str:
    """What is wrong with the content of a pair: unreadable, another size, unknown ids; '' for nothing."""
    try:
        read_pair(pair, labels)
    except (UnreadableImage, BadMask) as error:
        return str(error)
    return ""


def faults(data: FilesDataModule) -> Iterator[str]:
    """Everything that is wrong with a data set, a line each."""
    found, problems = find_pairs(data)
    yield from problems
    for pairs in found.values():
        for pair in pairs:
            if fault := fault_of(pair, data.labels):
                yield fault
