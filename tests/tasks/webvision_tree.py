"""WebVision 1.0 in small, in its true layout: class k shows the digit k, some training labels are wrong."""

from pathlib import Path

import numpy as np
from image_trees import NAMES, WNIDS, digit_picture, save_jpeg

# As in the real synsets.txt, the order is the classes' own; here it is not that of the wnids.
ORDER = (3, 0, 2, 1)
SYNSETS = [WNIDS[i] for i in ORDER]
TITLES = [NAMES[i] for i in ORDER]


def webvision_tree(root, google=8, flickr=4, val=3, wrong=2, seed=0, resized=False):
    """Four classes; in each `wrong` of the `google` images show the next digit. Returns the root."""
    generator = np.random.default_rng(seed)
    root, ending = Path(root), "_resized_256" if resized else ""
    info = root / "info"
    info.mkdir(parents=True)
    synsets = "".join(f"{wnid} {name}, another name\n" for wnid, name in zip(SYNSETS, TITLES, strict=True))
    (info / "synsets.txt").write_text(synsets)
    for source, count in (("google", google), ("flickr", flickr)):
        lines = []
        for label in range(len(SYNSETS)):
            for number in range(count):
                digit = (label + (source == "google" and number < wrong)) % len(SYNSETS)
                name = f"q{label + 1:04d}/{source[0]}{label}{number:03d}.jpg"
                save_jpeg(root / f"{source}{ending}" / name, digit_picture(generator, digit))
                lines.append(f"{source}/{name} {label}\n")
        (info / f"train_filelist_{source}.txt").write_text("".join(lines))
        (info / f"queries_{source}.txt").write_text("".join(f"{k + 1} {n}\n" for k, n in enumerate(TITLES)))
    (info / "queries_synsets_map.txt").write_text("".join(f"{k} {k}\n" for k in range(1, len(SYNSETS) + 1)))
    lines = []
    for label in range(len(SYNSETS)):
        for _ in range(val):
            name = f"val{len(lines) + 1:06d}.jpg"
            save_jpeg(root / "val_images_256" / name, digit_picture(generator, label))
            lines.append(f"{name} {label}\n")
    (info / "val_filelist.txt").write_text("".join(lines))
    return root


def imagenet_val(root, count=2, seed=1):
    """`val/<wnid>/*.JPEG` of the same wnids and of another: each shows the digit of its WebVision class."""
    generator, number = np.random.default_rng(seed), 0
    for wnid in (*WNIDS[:5],):
        for _ in range(count):
            number += 1
            digit = SYNSETS.index(wnid) if wnid in SYNSETS else 9
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            save_jpeg(Path(root) / "val" / wnid / name, digit_picture(generator, digit))
    return Path(root)
