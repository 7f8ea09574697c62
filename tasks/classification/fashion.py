"""Fashion-MNIST (Xiao et al., arXiv:1708.07747): 70,000 grey images of ten kinds of clothing."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from tasks.classification.styled import StyledDataModule
from tasks.classification.styles import Style
from tasks.errors import UserError
from tasks.splits import stratified_split

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts it."""
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_DOWNLOADED = Path("data/fashion")
_SHARES = {"train": 0.9, "val": 0.1}


class _IdxFiles(datasets.FashionMNIST):  # type: ignore[misc]
    """torchvision's Fashion-MNIST, in a folder that holds the unpacked files themselves."""

    @property
    def raw_folder(self) -> str:
        """That folder."""
        return str(self.root)


class FashionDataModule(StyledDataModule):
    """Fashion-MNIST as colour images: 54,000 for training, 6,000 for validation, 10,000 for test.

    Validation images are a fixed, stratified tenth of the official training images; the test images are the
    official ones.

    Args:
        root: A folder that holds {train,t10k}-{images-idx3,labels-idx1}-ubyte, with or without .gz, itself or
            in FashionMNIST/raw as torchvision has them. None for that of the Debian package
            dataset-fashion-mnist, or data/fashion where that is missing.
        batch_size: Images a process and step.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of order, augmentation and styles; the CLI sets it to `seed_everything`.
        image_size: Height and width of the images.
        download: Whether torchvision fetches the files if they are not there.
        augment: Whether training images are shifted by up to an eighth and flipped half the time.
        styles: Styles of the images, see `tasks.classification.styles`; none for grey images as they are.
        held_back: Those of the styles that test images alone have.
        train_samples: How many training images there are, the same in every run and each class in its share;
            None for all.
    """

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int = 32,
        download: bool = False,
        augment: bool = True,
        styles: list[Style] | None = None,
        held_back: list[Style] | None = None,
        train_samples: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            image_size=image_size,
            least_size=8,
            styles=styles,
            held_back=held_back,
            train_samples=train_samples,
        )
        self.root = Path(root).expanduser() if root else DEBIAN if folder_of(DEBIAN) else _DOWNLOADED
        self.download, self.augment = download, augment
        self.class_names = list(datasets.FashionMNIST.classes)
        if not download:
            self._folder()

    @property
    def num_classes(self) -> int:
        """Ten kinds of clothing."""
        return 10

    def prepare_data(self) -> None:
        """Fetch the files where that is asked for; one process of a machine does."""
        if self.download and not folder_of(self.root):
            try:
                datasets.FashionMNIST(self.root, download=True)
            except (RuntimeError, OSError) as error:
                raise UserError(f"data.root: cannot fetch Fashion-MNIST into {self.root}: {error}") from error

    def setup(self, stage: str) -> None:
        """Read the images, shrunk or enlarged once, and split them."""
        if self.rows:
            return
        folder = self._folder()
        parts = [read_part(folder, train) for train in (True, False)]
        labels = torch.cat([labels for _, labels in parts])
        trained = len(parts[0][1])
        rows: dict[str, NDArray[np.int64]] = stratified_split(labels[:trained].numpy(), _SHARES)
        rows["test"] = np.arange(trained, len(labels))
        self._take(torch.cat([images for images, _ in parts])[:, None], labels, rows)

    def augmentation(self) -> v2.Transform:
        """A shift and a flip."""
        if not self.augment:
            return v2.Identity()
        shift = v2.RandomCrop(self.image_size, padding=self.image_size // 8)
        return v2.Compose([shift, v2.RandomHorizontalFlip()])

    def _folder(self) -> Path:
        """The folder of the files.

        Raises:
            UserError: There is none.
        """
        folder = folder_of(self.root)
        if folder is None:
            raise UserError(
                f"data.root: expected {', '.join(FILES)}, each with or without .gz, in {self.root} or its "
                f"FashionMNIST/raw, got {_present(self.root)} of 4: apt-get install dataset-fashion-mnist "
                "(and leave data.root out), or fetch them with data.download true"
            )
        return folder


def folder_of(root: Path) -> Path | None:
    """The folder below `root` that holds all four files, packed or not; None where there is none."""
    folders = (root, root / "FashionMNIST" / "raw")
    return next((folder for folder in folders if _found(folder) == len(FILES)), None)


def read_part(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, H, W) and labels (N,) of the official training or test images.

    Raises:
        UserError: A file is broken, or the two do not fit each other.
    """
    names = FILES[:2] if train else FILES[2:]
    try:
        with TemporaryDirectory() as unpacked:
            for name in FILES:  # torchvision wants to see all of them, and reads two
                _provide(folder, name, Path(unpacked), is_read=name in names)
            part = _IdxFiles(unpacked, train=train)
    # torchvision checks a file's head by assertions and by what tensors refuse.
    except (OSError, EOFError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = str(error) or "not what the head of the file says"
        raise UserError(f"data.root: cannot read {names[0]} and {names[1]} in {folder}: {told}") from error
    images, labels = part.data, part.targets
    if len(images) != len(labels) or not len(labels):
        raise UserError(
            f"data.root: expected as many images as labels in {folder}, got {len(images):,} in {names[0]} "
            f"and {len(labels):,} in {names[1]}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(part.classes):
        raise UserError(
            f"data.root: expected labels 0 to {len(part.classes) - 1} in {folder / names[1]}, got "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    return images, labels


def _provide(folder: Path, name: str, target: Path, is_read: bool) -> None:
    """Let the file lie unpacked in `target`, by a link where it needs no unpacking."""
    plain = (folder / name).absolute()
    if plain.is_file():
        (target / name).symlink_to(plain)
    elif not is_read:
        (target / name).touch()
    else:
        with gzip.open(plain.with_name(f"{name}.gz")) as packed, (target / name).open("wb") as file:
            shutil.copyfileobj(packed, file)


def _found(folder: Path) -> int:
    return sum((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in FILES)


def _present(root: Path) -> int:
    return max(_found(root), _found(root / "FashionMNIST" / "raw"))
