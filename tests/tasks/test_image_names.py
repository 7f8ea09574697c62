"""Names of classes from meta.bin, a names file or torchvision."""

import os

import torch
from image_trees import NAMES, WNIDS, imagenet, refused, write_meta


def test_names_come_from_meta_bin_and_from_a_names_file(tree, tmp_path):
    assert imagenet(tree).class_name(1) == WNIDS[1]
    write_meta(tree)
    assert [imagenet(tree).class_name(i) for i in range(3)] == list(NAMES[:3])
    names = tmp_path / "names.txt"
    names.write_text(f"{WNIDS[2]} crane, bird\n{WNIDS[0]} tench fish\n{WNIDS[1]} crane\n{WNIDS[5]} unused\n")
    data = imagenet(tree, names=str(names))
    assert [data.class_name(i) for i in range(3)] == [
        "tench fish",
        f"crane ({WNIDS[1]})",
        f"crane ({WNIDS[2]})",
    ]
    names.write_text("a\n\nb c\nd\n")
    assert [imagenet(tree, names=str(names)).class_name(i) for i in range(3)] == ["a", "b c", "d"]


def test_the_thousand_classes_have_their_names(tmp_path):
    wnids = [WNIDS[0], *(f"n02{number:06d}" for number in range(998)), "n15075141"]
    for split in ("train", "val"):
        for wnid in wnids:
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "x.JPEG").touch()
    data = imagenet(tmp_path)
    names = [data.class_name(label) for label in range(1000)]
    # As in the challenge's list: class 134 is the bird, class 517 the machine.
    assert (names[0], names[1], names[134], names[517]) == ("tench", "goldfish", "crane bird", "crane")
    assert len(set(names)) == 1000 and data.class_name(999) == "toilet tissue"


def test_bad_names_are_refused(tree, tmp_path):
    names = tmp_path / "names.txt"
    refused(lambda: imagenet(tree, names=str(names)), "data.names: cannot read", names)
    names.write_text("a\nb\n")
    refused(lambda: imagenet(tree, names=str(names)), "expected 3 names", "got 2")
    names.write_text(f"{WNIDS[0]} a\n{WNIDS[1]} b\n")
    refused(lambda: imagenet(tree, names=str(names)), f"got none for {WNIDS[2]}")
    torch.save(({WNIDS[0]: ("a",)}, []), tree / "meta.bin")
    refused(lambda: imagenet(tree), tree / "meta.bin", f"got none for {WNIDS[1]}")
    (tree / "meta.bin").write_bytes(b"no archive")
    refused(lambda: imagenet(tree), tree / "meta.bin")


def test_meta_bin_runs_no_code(tree, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save(({WNIDS[0]: Attack()}, []), tree / "meta.bin")
    refused(lambda: imagenet(tree), tree / "meta.bin")
    assert not (tmp_path / "attacked").exists()
