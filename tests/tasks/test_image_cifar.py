"""CIFAR from the files of its archive."""

import numpy as np
import pytest
import torch
from image_trees import cifar_tree
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import v2

from tasks.classification.cifar import CIFAR10DataModule, CIFAR100DataModule
from tasks.data import SeededDataset
from tasks.errors import UserError


@pytest.mark.parametrize(("source", "module"), [(CIFAR10, CIFAR10DataModule), (CIFAR100, CIFAR100DataModule)])
def test_cifar(tmp_path, monkeypatch, source, module):
    root = cifar_tree(tmp_path, monkeypatch, source)
    data = module(str(root), num_workers=0, erasing=0.5, auto_augment="autoaugment")
    data.prepare_data()
    data.setup("fit")
    oracle = {train: source(root, train=train) for train in (True, False)}
    assert data.num_classes == len(oracle[True].classes) and data.class_name(3) == oracle[True].classes[3]
    for split in ("train", "val", "test"):
        assert data.labels(split).tolist() == oracle[split == "train"].targets
    # Evaluation: the very pixels.
    image, label = data.examples("val")[5]
    assert torch.equal(image, torch.from_numpy(np.array(oracle[False][5][0])).permute(2, 0, 1))
    assert label == oracle[False][5][1] and torch.equal(data.picture("test", 5), image)
    steps = data.examples("train").transform.transforms
    assert [type(step) for step in steps] == [
        v2.RandomCrop,
        v2.RandomHorizontalFlip,
        v2.AutoAugment,
        v2.RandomErasing,
    ]
    assert steps[2].policy == v2.AutoAugmentPolicy.CIFAR10


def test_cifar_crops_are_shifts_by_up_to_four_pixels(tmp_path, monkeypatch):
    data = CIFAR10DataModule(str(cifar_tree(tmp_path, monkeypatch, CIFAR10)), num_workers=0)
    data.setup("fit")
    padded = torch.nn.functional.pad(data.picture("train", 0), (4, 4, 4, 4))
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    candidates = windows + [window.flip(-1) for window in windows]
    dataset = SeededDataset(data.examples("train"), 0)
    found = []
    for epoch in range(20):
        image = dataset[epoch, 0][0]
        found.append([n for n, candidate in enumerate(candidates) if torch.equal(image, candidate)])
    assert all(len(hits) == 1 for hits in found) and len({hits[0] for hits in found}) > 10


def test_cifar_that_is_not_there_or_broken_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cifar-10-batches-py .*download true"):
        CIFAR10DataModule(str(tmp_path))
    root = cifar_tree(tmp_path, monkeypatch, CIFAR10)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    data = CIFAR10DataModule(str(root), num_workers=0)
    with pytest.raises(UserError, match=r"data\.root: cannot use CIFAR10"):
        data.setup("fit")
