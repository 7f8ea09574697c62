"""Small image data sets in the layouts of the real ones, the same for the same seed, and their refusal."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.photographs import photograph
from tasks.errors import UserError

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
NAMES = ("tench", "goldfish", "great white shark", "tiger shark", "hammerhead", "electric ray")


def digit_picture(generator, digit, size=None):
    """A handwritten digit in front of a photograph, (H, W, 3) bytes, each side 96 to 160 unless given."""
    height, width = size or generator.integers(96, 161, 2).tolist()
    picture = photograph(generator, width, height).astype(float)
    digits = load_digits()
    rows = np.flatnonzero(digits.target == digit)
    ink = np.kron(digits.images[generator.choice(rows)] / 16, np.ones((10, 10)))[..., None]  # 80×80
    top, left = (int(generator.integers(0, side - 79)) for side in (height, width))
    box = picture[top : top + 80, left : left + 80]
    box += ink * (generator.uniform(200, 255, 3) - box)
    return picture.round().clip(0, 255).astype(np.uint8)


def save_jpeg(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=90, **options)


def imagenet_tree(root, classes=4, train=12, val=4, seed=0, size=None):
    """`root/{train,val}/<wnid>/*.JPEG`: class k shows the digit k."""
    generator = np.random.default_rng(seed)
    root, number = Path(root), 0
    for label in range(classes):
        for index in range(train):
            name = f"{WNIDS[label]}_{18 + 7 * index}.JPEG"
            save_jpeg(root / "train" / WNIDS[label] / name, digit_picture(generator, label, size))
        for _ in range(val):
            number += 1
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            save_jpeg(root / "val" / WNIDS[label] / name, digit_picture(generator, label, size))
    return root


def imagenet(root, **options):
    """The data module of a tree, ready for training."""
    from tasks.classification.imagenet import ImageNetDataModule

    data = ImageNetDataModule(str(root), num_workers=0, **options)
    data.setup("fit")
    return data


def write_meta(root):
    """`meta.bin` as torchvision's ImageNet writes it."""
    names = {wnid: (name, f"another {name}") for wnid, name in zip(WNIDS, NAMES, strict=True)}
    torch.save((names, [WNIDS[0]] * 3), root / "meta.bin")


def write_lists(root, folder=""):
    """`train.txt` and `val.txt` beside the folders, lines `<folder><wnid>/<file> <label>`."""
    for split in ("train", "val"):
        base = root / split
        files = sorted(base.glob("*/*"))
        lines = [
            f"{folder.format(split=split)}{f.relative_to(base)} {WNIDS.index(f.parent.name)}" for f in files
        ]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")


def break_file(path, kind):
    """Put a broken or an unusual file in a JPEG's place; all but the first three hold the same picture."""
    image = Image.open(path)
    image.load()
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("<html>404 Not Found</html>\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("CMYK", "L"):
        image.convert(kind).save(path, "JPEG", quality=90)
    elif kind == "RGBA":
        image.putalpha(128)
        image.save(path, "PNG")
    elif kind == "16-bit":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, "PNG")
    elif kind == "rotated":
        exif = Image.Exif()
        exif[274] = 6  # to be turned by 90° clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=90, exif=exif)
    else:
        raise ValueError(kind)


def cifar_tree(root, monkeypatch, source, batch=20, seed=0):
    """The unpacked archive of `source` (torchvision's CIFAR10 or CIFAR100), and checksums that fit it."""
    from torchvision.datasets.utils import calculate_md5

    generator = np.random.default_rng(seed)
    folder = Path(root) / source.base_folder
    folder.mkdir(parents=True)
    key = source.meta["key"]
    names = [f"{key}_{i}" for i in range(10 if key == "label_names" else 100)]
    labels_key = "labels" if len(names) == 10 else "fine_labels"

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(folder / name)]

    def write_batch(name):
        pixels = generator.integers(0, 256, (batch, 3072), dtype=np.uint8)
        labels = generator.integers(0, len(names), batch).tolist()
        return write(name, {"data": pixels, labels_key: labels})

    for attribute in ("train_list", "test_list"):
        files = [write_batch(name) for name, _ in getattr(source, attribute)]
        monkeypatch.setattr(source, attribute, files)
    name, md5 = write(source.meta["filename"], {key: names})
    monkeypatch.setattr(source, "meta", {"filename": name, "key": key, "md5": md5})
    return Path(root)


def refused(build, *parts):
    with pytest.raises((UserError, ValueError)) as caught:
        build()
    for part in parts:
        assert str(part) in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
