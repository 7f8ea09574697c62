"""`python -m tasks.classification predict --ckpt_path <file> --images <image or folder>`.

Needs neither the training data nor a configuration: the checkpoint says what its classes and inputs are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasks.arguments import LineParser, at_least
from tasks.classification.load import Classifier, checkpoint_in, load_classifier
from tasks.errors import UserError, one_line
from tasks.file_list import FileList, images_at
from tasks.images import UnreadableImage, read_image
from tasks.run_folder import RunFolder
from tasks.tables import write_predictions

Item = tuple[int, Tensor | str]
"""Index, and the network's input or why the image cannot be read."""

_SHOWN = 5  # classes in the table of a single image


def main(args: Sequence[str]) -> None:
    """Predict the classes of images, as the command line says.

    Raises:
        UserError: An option is wrong, there is no classifier, or no image that can be read.
    """
    options = _parse(args)
    files = images_at(options.images)
    checkpoint = checkpoint_in(Path(options.ckpt_path))
    output = _output(options.output, checkpoint)
    classifier = load_classifier(checkpoint)
    names = classifier.class_names
    if options.top > len(names):
        raise UserError(f"--top: expected at most {len(names)}, the number of classes, got {options.top}")
    kept = max(options.top, min(_SHOWN, len(names)) if len(files) == 1 else 1)
    best = list(predict(classifier, files, kept, options.batch_size, options.num_workers))
    if not best:
        raise UserError(f"--images: expected an image that can be read, got none in {options.images}")
    write_predictions(
        output,
        (
            (files.name(index), names[label], probability, "")
            for index, ranked in best
            for label, probability in ranked[: options.top]
        ),
    )
    if options.images.is_file():
        _show(files.name(0), {names[label]: f"{probability:.4f}" for label, probability in best[0][1]})
    if len(best) < len(files):
        print(f"{len(files) - len(best)} of {len(files)} images are unreadable and left out", file=sys.stderr)


def predict(
    classifier: Classifier, files: FileList, top: int, batch_size: int, num_workers: int
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Each image's `top` most probable classes, on the GPU where there is one.

    An unreadable image is named on stderr and left out.

    Yields:
        Index of the file, and (class, probability) pairs, the most probable first.
    """
    from rich.console import Console
    from rich.progress import track

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = classifier.to(device)
    batches = DataLoader(
        dataset=_Images(files, classifier),
        batch_size=batch_size,
        # Processes take longer to start than one batch to load.
        num_workers=num_workers if len(files) > batch_size else 0,
        collate_fn=_readable,
        pin_memory=device.type == "cuda",
    )
    console = Console(stderr=True)
    for indices, images, unreadable in track(
        batches, "predicting", console=console, transient=True, disable=not console.is_terminal
    ):
        for index, reason in unreadable:
            console.out(one_line(f"unreadable, left out: {files.path(index)}: {reason}"), highlight=False)
        if indices:
            with torch.inference_mode():
                values, labels = classifier(images.to(device, non_blocking=True)).topk(top)
            for index, *ranked in zip(indices, labels.tolist(), values.tolist(), strict=True):
                yield index, list(zip(*ranked, strict=True))


class _Images(Dataset[Item]):
    def __init__(self, files: FileList, classifier: Classifier) -> None:
        self.files, self.preprocess = files, classifier.preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        try:
            return index, self.preprocess(read_image(self.files.path(index)))
        except UnreadableImage as error:
            return index, error.reason


def _readable(items: Sequence[Item]) -> tuple[list[int], Tensor, list[tuple[int, str]]]:
    """Indices and inputs of the images that could be read; index and reason of the others."""
    read = {index: image for index, image in items if isinstance(image, Tensor)}
    unreadable = [(index, reason) for index, reason in items if isinstance(reason, str)]
    return list(read), torch.stack(list(read.values())) if read else torch.empty(0), unreadable


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = LineParser(prog="python -m tasks.classification predict", description=(__doc__ or "").strip())
    count, size = partial(at_least, 0), partial(at_least, 1)
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint, run folder or exported folder.")
    parser.add_argument("--images", required=True, type=Path, help="An image, or a folder of images.")
    parser.add_argument(
        "--output", type=Path, help="Table to write; by default predictions.csv in the run's folder, or here."
    )
    parser.add_argument("--batch_size", type=size, default=64, help="Images a step.")
    parser.add_argument("--num_workers", type=count, default=2, help="Loader processes.")
    parser.add_argument("--top", type=size, default=1, help="Rows an image: its most probable classes.")
    parser.add_argument("-c", "--config", action="append", help="Accepted, and not used.")
    return parser.parse_args(args)


def _output(given: Path | None, checkpoint: Path) -> Path:
    """The table to write.

    Raises:
        UserError: It cannot be written.
    """
    run = RunFolder.of_checkpoint(checkpoint)
    path = given or (run.path if run else Path()) / "predictions.csv"
    # Now, not after an hour of predicting.
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--output: expected a file in a folder that can be written to, got {str(path)!r}")
    return path


def _show(title: str, rows: dict[str, str]) -> None:
    from rich.markup import escape

    from tasks.report import print_table

    # Bytes of file names that are no UTF-8 cannot be shown.
    shown = escape(title.encode("utf-8", "replace").decode())
    print_table(shown, {escape(name): value for name, value in rows.items()})
