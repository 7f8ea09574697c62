"""What `check-data` looks at in data sets of segmentation: images, their masks, and what they lack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from tasks.check_data.trees import Part, Tree
from tasks.errors import UserError
from tasks.file_list import FileList
from tasks.images import UnreadableImage
from tasks.segmentation.ade20k import ADE20KDataModule
from tasks.segmentation.cityscapes import CityscapesDataModule
from tasks.segmentation.data import FilesDataModule
from tasks.segmentation.labels import Labels
from tasks.segmentation.masks import BadMask, read_instances, read_mask, same_size
from tasks.segmentation.pairs import Layout

_SPLITS = ("train", "val")


def cityscapes(root: Path) -> Tree:
    """`leftImg8bit` and `gtFine`."""
    return _tree(CityscapesDataModule, root)


def ade20k(root: Path) -> Tree:
    """`images` and `annotations`."""
    return _tree(ADE20KDataModule, root)


@dataclass(frozen=True)
class MaskFault:
    """What is wrong with the mask of an image, or its instance ids: unreadable, another size, unknown ids.

    Attributes:
        layout: Where the masks are.
        labels: Classes of the masks.
    """

    layout: Layout
    labels: Labels

    def __call__(self, path: str, image: Tensor) -> str:
        """The fault, from the image's path and pixels as stored (3, H, W); '' for none."""
        mask_path = self.layout.mask_of(Path(path))
        try:
            same_size(image, read_mask(mask_path, self.labels), Path(path), mask_path)
            if instances := self.layout.instances_of(Path(path)):
                read_instances(instances, image.shape[-2:], Path(path))
        except (UnreadableImage, BadMask) as error:
            return str(error)
        return ""


def _tree(kind: type[FilesDataModule], root: Path) -> Tree:
    try:
        data = kind(str(root))  # type: ignore[call-arg]
    except UserError as error:
        return Tree(problems=[str(error)])
    tree = Tree()
    for split in _SPLITS:
        layout = data.layout(split)
        try:
            pairs, bare = layout.find()
        except UserError as error:
            tree.problems.append(str(error))
            continue
        tree.problems += [f"{image}: has no mask" for image in bare]
        tree.problems += [f"{path}: missing, where others are" for path in layout.lacking_instances(pairs)]
        names = [str(pair.image.relative_to(layout.images)) for pair in pairs]
        files = FileList.of(layout.images, names, np.zeros(len(names), np.int64))
        tree.parts.append(Part(split, files, ["images with a mask"], MaskFault(layout, data.labels)))
    return tree
