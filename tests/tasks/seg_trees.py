"""Small segmentation data sets in the layouts of the real ones, the same for the same seed."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from tasks.segmentation.scenes import compose, split_digits

# Raw ids of what the scenes show: the background is road, the digits are stuff and objects.
CITYSCAPES_IDS = (7, 8, 11, 17, 20, 21, 24, 25, 26, 31, 33)
ADE_IDS = (1, 2, 3, 5, 13, 21, 47, 88, 102, 149, 150)
ODD_SIZE = (89, 131)  # no multiples of 8, 16 or 32


digits_of = cache(split_digits)


def scene(generator, split, rows=4, columns=6):
    """(H, W, 3) bytes and (H, W) train ids of digits on a canvas, 24 pixels a place."""
    image, mask = compose(generator, *digits_of(split), rows, columns)
    return image.permute(1, 2, 0).numpy(), mask.numpy()


def raw_ids(mask, numbers, void):
    """Train ids of a scene as a data set's numbers."""
    table = np.full(256, void, np.uint8)
    table[: len(numbers)] = numbers
    return table[mask]


def cityscapes_tree(root, train=3, val=2, seed=0, instances=True, odd=False):
    """`leftImg8bit` and `gtFine` with a folder a city: PNG, label ids of 8 bits, instance ids of 16.

    Void is raw id 4; the test split has its images, and masks that hold nothing, as the real one.
    """
    root, generator = Path(root), np.random.default_rng(seed)
    cities = {"train": ("aachen", "bochum"), "val": ("frankfurt", "lindau"), "test": ("berlin", "bonn")}
    for split, count in {"train": train, "val": val, "test": 1}.items():
        for number in range(count):
            city = cities[split][number % 2]
            name = f"{city}_{number:06d}_000019"
            image, mask = scene(generator, split)
            if odd and number == count - 1:
                image, mask = image[: ODD_SIZE[0], : ODD_SIZE[1]], mask[: ODD_SIZE[0], : ODD_SIZE[1]]
            ids = raw_ids(mask, CITYSCAPES_IDS, 4) if split != "test" else np.zeros_like(mask)
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)
            if instances:
                save(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", numbered(ids))
    return root


def numbered(ids):
    """Instance ids of label ids: 1000 · id + number for each object of the classes 24 to 33."""
    result = ids.astype(np.uint16)
    for label in np.unique(ids[ids >= 24]):
        parts, _ = ndimage.label(ids == label)
        result[parts > 0] = 1000 * int(label) + parts[parts > 0] - 1
    return result


def ade20k_tree(root, train=3, val=2, seed=0, odd=True):
    """`images` (JPEG) and `annotations` (PNG, 0 for nothing), `objectInfo150.txt`, `sceneCategories.txt`."""
    root, generator = Path(root), np.random.default_rng(seed)
    categories = []
    for split, folder, count in (("train", "training", train), ("val", "validation", val)):
        for number in range(1, count + 1):
            name = f"ADE_{split}_{number:08d}"
            image, mask = scene(generator, split, rows=4, columns=4 + number % 2)
            if odd and number == count:
                image, mask = image[: ODD_SIZE[0], : ODD_SIZE[1]], mask[: ODD_SIZE[0], : ODD_SIZE[1]]
            save(root / "images" / folder / f"{name}.jpg", image, quality=95)
            save(root / "annotations" / folder / f"{name}.png", raw_ids(mask, ADE_IDS, 0))
            categories.append(f"{name} digits")
    (root / "sceneCategories.txt").write_text("\n".join(categories) + "\n")
    lines = [f"{number}\t0.0067\t100\t10\tthing {number}, matter {number}" for number in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]) + "\n")
    return root


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)
