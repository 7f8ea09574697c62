"""From JPEG files to training batches at 224²: images per second and core, against torchvision's references.

    python -m benchmarks.input [--rounds 31] [--batch 32] [--width 500] [--height 375]

One thread, pipelines interleaved in one process, on the same generated photographs (quality 90). Each ends in
a normalised float32 batch; the last row leaves the normalisation to a GPU. Their pixels are compared for the
same crops. Prints ratios and writes results/input.json.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import default_loader
from torchvision.io import decode_image, read_file
from torchvision.transforms import v2

from benchmarks.measure import interleaved, markdown, summary, write_result
from benchmarks.photographs import photograph
from tasks.classification.transforms import read_crop_flip
from tasks.normalize import normalize

SIZE, QUALITY = 224, 90
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIL, TENSOR, DECODED = "torchvision, PIL", "torchvision, tensor", "torchvision, tensor and decode_image"
OURS, BYTES = "ours", "ours, bytes to the device"
REFERENCES = (PIL, TENSOR, DECODED)
Pipeline = Callable[[list[Path]], Tensor]


def reference(load: Callable[[Path], Any], *before: Any) -> Callable[[Path], Tensor]:
    """A path to a normalised image, as in references/classification/presets.py of torchvision.

    Args:
        load: From a path to an image.
        *before: The step into a tensor where it comes first; behind the flip otherwise.
    """
    to_tensor = [] if before or load is not default_loader else [v2.PILToTensor()]
    steps = v2.Compose(
        [
            *before,
            v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            *to_tensor,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
    )
    return lambda path: steps(load(path))


def decoded(path: Path) -> Tensor:
    """An image from torchvision's own decoder."""
    image: Tensor = decode_image(read_file(str(path)), mode="RGB")
    return image


def ours(path: Path) -> Tensor:
    """What the data modules do in a loader process: bytes (3, 224, 224)."""
    image: Any = path
    for step in STEPS:
        image = step(image)
    return torch.as_tensor(image)


STEPS = read_crop_flip(SIZE, "bilinear")


def batch_of(view: Callable[[Path], Tensor], paths: list[Path]) -> Tensor:
    """The views of files as one batch, as a loader collates them."""
    return torch.stack([view(path) for path in paths])


def normalized_batch_of(view: Callable[[Path], Tensor], paths: list[Path]) -> Tensor:
    """The same for views in bytes, normalised as a batch."""
    return normalize(batch_of(view, paths), MEAN, STD)


def pipelines() -> dict[str, Pipeline]:
    """From paths to a batch, by name."""
    views = {
        PIL: reference(default_loader),
        TENSOR: reference(default_loader, v2.PILToTensor()),
        DECODED: reference(decoded),
    }
    return {
        **{name: partial(batch_of, view) for name, view in views.items()},
        OURS: partial(normalized_batch_of, ours),
        BYTES: partial(batch_of, ours),
    }


def write_photographs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Generated JPEG files."""
    paths = [folder / f"{number:04}.JPEG" for number in range(count)]
    for number, path in enumerate(paths):
        picture = photograph(np.random.default_rng(number), width, height)
        Image.fromarray(picture).save(path, quality=QUALITY)
    return paths


def differences(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Mean and largest difference of ours from each reference for the same crops, in grey levels of 255."""
    runs = pipelines()
    batches = {}
    for name in (OURS, *REFERENCES):
        torch.manual_seed(0)
        batches[name] = runs[name](paths) * torch.tensor(STD).view(3, 1, 1) * 255
    gaps = {name: (batches[OURS] - batches[name]).abs() for name in REFERENCES}
    return {name: {"mean": float(gap.mean()), "max": float(gap.max())} for name, gap in gaps.items()}


def measure(paths: list[Path], rounds: int) -> list[dict[str, Any]]:
    """Rows, one a pipeline: times a batch, images a second, and the ratio of ours to it in the same round."""
    torch.manual_seed(0)
    seconds = interleaved({name: partial(run, paths) for name, run in pipelines().items()}, rounds)
    size = sum(path.stat().st_size for path in paths) / len(paths)
    gaps = differences(paths)
    rows = []
    for name, times in seconds.items():
        ratios = torch.tensor(times, dtype=torch.float64) / torch.tensor(seconds[OURS], dtype=torch.float64)
        median, p20, p80 = (float(torch.quantile(ratios, q)) for q in (0.5, 0.2, 0.8))
        rows.append(
            {
                "pipeline": name, "batch": len(paths), "file_bytes": size, **summary(times),
                "images_per_second": len(paths) / float(np.median(times)),
                "time_over_ours": median, "time_over_ours_p20": p20, "time_over_ours_p80": p80,
                "grey_levels": gaps.get(name),
            }
        )  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    header = ["pipeline", "images / s and core", "time / ours (p20–p80)", "grey levels apart: mean, max"]
    lines = []
    for row in rows:
        low, high, gap = row["time_over_ours_p20"], row["time_over_ours_p80"], row["grey_levels"]
        ratio = f"{row['time_over_ours']:.2f} ({low:.2f}–{high:.2f})"
        apart = f"{gap['mean']:.3f}, {gap['max']:.1f}" if gap else ""
        lines.append([row["pipeline"], f"{row['images_per_second']:.0f}", ratio, apart])
    return markdown(header, lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # torchvision warns at each call that a later release will be without its decoder.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchvision")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), args.batch, args.width, args.height)
        rows = measure(paths, args.rounds)
    print(f"{table(rows)}\n\nwritten: {write_result('input', rows)}")


if __name__ == "__main__":
    main()
