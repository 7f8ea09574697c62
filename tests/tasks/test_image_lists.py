"""Listing image files: folders, list files, class names, and what is wrong with them."""

import os
import pickle
import shutil

import numpy as np
import pytest
from image_trees import WNIDS, imagenet, refused, write_lists
from torchvision.datasets import ImageFolder

from tasks.classification.folders import ImageFolderDataModule
from tasks.file_list import FileList


def names_of(data, split):
    return [data.sample_name(split, index) for index in range(len(data.labels(split)))]


def test_names_are_packed_and_come_back(tmp_path):
    names = ["a.jpg", "", "ä/long name.JPEG", os.fsdecode(b"\xff.png")]
    files = FileList.of(tmp_path, iter(names), np.arange(4))
    assert [files.name(i) for i in range(4)] == names and len(files) == 4
    assert files.path(2) == tmp_path / names[2]
    some = files.select(np.array([3, 0]))
    assert [some.name(i) for i in range(2)] == [names[3], names[0]] and some.labels.tolist() == [3, 0]
    assert files.packed.nbytes == sum(len(os.fsencode(name)) for name in names)
    assert [pickle.loads(pickle.dumps(files)).name(i) for i in range(4)] == names


def test_folders_are_listed_as_torchvision_lists_them(tree):
    # Nested folders, other suffixes and files that are no images.
    deep = tree / "train" / WNIDS[1] / "more"
    deep.mkdir()
    (deep / "x.PNG").touch()
    (tree / "train" / WNIDS[1] / "notes.txt").touch()
    (tree / "train" / WNIDS[0] / "a.jpeg").touch()
    data = imagenet(tree)
    for split in ("train", "val"):
        oracle = ImageFolder(str(tree / split))
        assert names_of(data, split) == [os.path.relpath(path, tree / split) for path, _ in oracle.samples]
        assert data.labels(split).tolist() == oracle.targets
        assert data.classes == oracle.classes
    assert data.num_classes == 3 and len(data.labels("train")) == 3 * 3 + 2
    assert names_of(data, "test") == names_of(data, "predict") == names_of(data, "val")


@pytest.mark.parametrize("folder", ["", "{split}/"], ids=["relative to the split", "relative to the root"])
def test_list_files_give_what_the_folders_give(tree, folder):
    by_folder = imagenet(tree)
    write_lists(tree, folder)
    by_list = imagenet(tree)
    assert by_list.classes == by_folder.classes == list(WNIDS[:3])
    for split in ("train", "val"):
        assert np.array_equal(by_list.labels(split), by_folder.labels(split))
        left, right = ([data.files(split).path(i) for i in range(6)] for data in (by_list, by_folder))
        assert left == right


def test_list_files_choose_and_order_the_images(tree):
    lines = [
        f"{WNIDS[2]}/{WNIDS[2]}_18.JPEG 2",
        f"{WNIDS[0]}/{WNIDS[0]}_25.JPEG 0",
        "",
        f"{WNIDS[1]}/x y.JPEG 1",
    ]
    (tree / "train" / WNIDS[1] / "x y.JPEG").touch()
    write_lists(tree)
    (tree / "train.txt").write_text("\n".join(lines))
    data = imagenet(tree)
    assert names_of(data, "train") == [line.rsplit(" ", 1)[0] for line in lines if line]
    assert data.labels("train").tolist() == [2, 0, 1]


def test_validation_images_may_lie_in_one_folder(tree):
    write_lists(tree)
    lines = []
    for label, wnid in enumerate(WNIDS[:3]):
        for path in sorted((tree / "val" / wnid).iterdir()):
            path.rename(tree / "val" / path.name)
            lines.append(f"{path.name} {label}")
    (tree / "val.txt").write_text("\n".join(lines[::-1]))
    data = imagenet(tree)
    assert data.labels("val").tolist() == [2, 2, 1, 1, 0, 0]
    assert names_of(data, "val")[0] == "ILSVRC2012_val_00000006.JPEG"


def link_out(tree):
    (tree.parent / "secret.JPEG").touch()
    (tree / "train" / WNIDS[0] / "link.JPEG").symlink_to(tree.parent / "secret.JPEG")
    return f"{WNIDS[0]}/link.JPEG 0"


def folder_link_out(tree):
    (tree.parent / "out").mkdir()
    (tree.parent / "out" / "x.JPEG").touch()
    (tree / "train" / "n00000000").symlink_to(tree.parent / "out")
    return "n00000000/x.JPEG 0"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("n01440764/n01440764_18.JPEG", "expected <file> <label>, got 'n01440764/n01440764_18.JPEG'"),
        ("n01440764/n01440764_18.JPEG zero", "expected <file> <label>"),
        ("n01440764/n01440764_18.JPEG -1", "expected <file> <label>"),
        ("../secret.JPEG 0", "expected a file below the data's root, got '../secret.JPEG'"),
        ("n01440764/../../../secret.JPEG 0", "expected a file below the data's root"),
        ("/etc/passwd 0", "expected a file below the data's root"),
        (link_out, "a link out of it"),
        (folder_link_out, "a link out of it"),
        ("n01440764/missing.JPEG 0", "n01440764/missing.JPEG does not exist in"),
        ("n01440764/n01440764_18.JPEG 3", "expected a label from 0 to 2, got 3"),
        ("n01440764/n01440764_18.JPEG 1", "expected label 0 for n01440764, got 1"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tree, line, told):
    write_lists(tree)
    line = line(tree) if callable(line) else line
    path = tree / "train.txt"
    path.write_text(path.read_text() + "\n" + line + "\n")  # nine lines, an empty one, the bad one
    refused(lambda: imagenet(tree), f"{path}:11: ", told)


def test_a_link_within_the_data_is_taken(tree):
    target = tree / "train" / WNIDS[0] / f"{WNIDS[0]}_18.JPEG"
    (target.parent / "again.JPEG").symlink_to(target)
    write_lists(tree)
    assert f"{WNIDS[0]}/again.JPEG" in names_of(imagenet(tree), "train")


def test_splits_of_lists_must_have_the_same_classes(tree):
    write_lists(tree)
    kept = [line for line in (tree / "val.txt").read_text().splitlines() if not line.endswith(" 1")]
    (tree / "val.txt").write_text("\n".join(kept))
    refused(lambda: imagenet(tree), tree, f"{WNIDS[1]} only in train.txt")
    (tree / "val.txt").unlink()
    refused(lambda: imagenet(tree), "cannot read", tree / "val.txt")
    (tree / "val.txt").write_text("\n")
    refused(lambda: imagenet(tree), tree / "val.txt", "an empty file")


def test_what_is_wrong_with_folders_is_named(tree):
    refused(lambda: imagenet(tree / "none"), "data.root", tree / "none", "does not exist")
    refused(lambda: imagenet(tree / "train" / WNIDS[0] / f"{WNIDS[0]}_18.JPEG"), "is a file")
    refused(lambda: imagenet(tree / "train"), tree / "train" / "train", "does not exist")
    shutil.rmtree(tree / "train" / WNIDS[2])
    for name in ("q1", "q2", "q3", "q4", "q5"):
        (tree / "train" / name).mkdir()
    refused(lambda: imagenet(tree), "q1, q2, q3 and 2 more only in train", f"{WNIDS[2]} only in val")


def test_a_class_without_images_is_named(tree):
    for path in (tree / "train" / WNIDS[1]).iterdir():
        path.unlink()
    (tree / "train" / WNIDS[1] / "readme.txt").touch()
    refused(lambda: imagenet(tree), "expected images for every class", f"got none for {WNIDS[1]}")


def folder(root, **options):
    data = ImageFolderDataModule(str(root), num_workers=0, **options)
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


def test_a_folder_with_splits_has_its_own_test_split_or_the_validation_images(tree):
    assert names_of(folder(tree), "test") == names_of(folder(tree), "val")
    shutil.copytree(tree / "train", tree / "test")
    data = folder(tree)
    assert names_of(data, "test") == names_of(data, "train") != names_of(data, "val")
    shutil.rmtree(tree / "test" / WNIDS[0])
    refused(lambda: folder(tree), f"{WNIDS[0]} only in train")
    shutil.rmtree(tree / "test")
    shutil.rmtree(tree / "val")
    refused(lambda: folder(tree), tree / "val", "does not exist")


def test_a_folder_without_splits_is_divided_class_by_class(tree):
    for count, wnid in zip((20, 10, 31), WNIDS, strict=False):
        for number in range(count):
            (tree / "train" / wnid / f"extra_{number}.jpg").touch()
    counts = np.array([23, 13, 34])
    data = folder(tree / "train", val_share=0.2)
    train, val = (names_of(data, split) for split in ("train", "val"))
    everything = [os.path.relpath(p, tree / "train") for p, _ in ImageFolder(str(tree / "train")).samples]
    assert sorted(train + val) == everything and not set(train) & set(val)
    assert np.abs(np.bincount(data.labels("val")) - 0.2 * counts).max() <= 0.5
    assert [WNIDS[label] for label in data.labels("val")] == [name.partition("/")[0] for name in val]
    assert names_of(data, "test") == val
    # Another seed of the run leaves the division alone, another seed of the division does not.
    assert names_of(folder(tree / "train", val_share=0.2, seed=9), "val") == val
    assert names_of(folder(tree / "train", val_share=0.2, split_seed=1), "val") != val
    refused(lambda: folder(tree / "train", val_share=0.01), "data.val_share", "no image for val")
    refused(lambda: folder(tree / "train", val_share=1.0), "data.val_share: expected a number in (0, 1)")
    refused(lambda: folder(tree / "train" / WNIDS[0]), "expected a folder for each class")
