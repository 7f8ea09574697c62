"""The check of a data set finds what is wrong, says so in three forms and ends with the right code."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from seg_trees import ade20k_tree, cityscapes_tree, save
from task_paths import REPOSITORY

from tasks.check_data import verify as verify_module
from tasks.check_data.__main__ import main
from tasks.check_data.findings import Gatherer, equal_rows
from tasks.check_data.trees import tree_of
from tasks.check_data.verify import verify, verify_file

MASK_SPLITS = {"cityscapes": ("train", "val"), "ade20k": ("training", "validation")}
MASKS = {"cityscapes": "gtFine/{}/*/*_labelIds.png", "ade20k": "annotations/{}/*.png"}
IMAGES = {"cityscapes": "leftImg8bit/{}/*/*.png", "ade20k": "images/{}/*.jpg"}
WNIDS = ["n01440764", "n01443537", "n01484850"]


def write(path, seed, mode="RGB", size=(12, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def root(tmp_path):
    """ImageNet's layout, sound: three classes of 3 training and 2 validation images."""
    place = tmp_path / "imagenet"
    for number, wnid in enumerate(WNIDS):
        for i in range(3):
            write(place / "train" / wnid / f"{wnid}_{i}.JPEG", seed=10 * number + i)
        for i in range(2):
            name = f"ILSVRC2012_val_{1 + 2 * number + i:08}.JPEG"
            write(place / "val" / wnid / name, seed=100 + 10 * number + i)
    return place


@pytest.fixture
def here(monkeypatch):
    """check(data, root, report) → exit code and JSON report, decoding in this process."""

    def in_process(tree, workers, advance=lambda count: None):
        for number, part in enumerate(tree.parts):
            for row in range(len(part.files)):
                yield number, row, verify_file(str(part.files.path(row)), part.fault)

    monkeypatch.setattr("tasks.check_data.__main__.verify", in_process)

    def check(data, root, name="report.json"):
        report = root.parent / name
        code = main([data, str(root), "--report", str(report)])
        return code, json.loads(report.read_text()) if name.endswith("json") else report.read_text()

    return check


def test_a_sound_tree_is_clean(root, here, capsys):
    code, report = here("imagenet", root)
    assert code == 0
    assert report["counts"] == {"train": dict.fromkeys(WNIDS, 3), "val": dict.fromkeys(WNIDS, 2)}
    assert report["files"] == 15 and report["kinds"] == {"JPEG RGB": 15}
    assert report["problems"] == report["broken"] == report["duplicates"] == []
    out = capsys.readouterr().out
    assert "9 files in 3 classes of 3 to 3" in out and "clean; report:" in out and "not clean" not in out


def test_broken_files_are_named(root, here):
    folder = root / "train" / WNIDS[1]
    whole = (folder / f"{WNIDS[1]}_0.JPEG").read_bytes()
    (folder / "cut.JPEG").write_bytes(whole[:-20])
    (folder / "empty.JPEG").write_bytes(b"")
    (folder / "[b]page.JPEG").write_text("<html>not found</html>")
    (folder / "gone.JPEG").symlink_to(root / "nowhere")
    code, report = here("imagenet", root)
    assert code == 1
    reasons = {os.path.basename(one["path"]): one["reason"] for one in report["broken"]}
    assert "truncated" in reasons.pop("cut.JPEG")
    assert reasons == {
        "empty.JPEG": "empty file",
        "[b]page.JPEG": "no image of a known format",
        "gone.JPEG": "No such file or directory",
    }
    assert report["counts"]["train"][WNIDS[1]] == 7 and report["kinds"] == {"JPEG RGB": 15}
    assert report["duplicates"] == []


def test_kinds_and_sizes(root, here):
    train = root / "train" / WNIDS[0]
    write(train / "grey.JPEG", 50, mode="L")
    write(train / "cmyk.JPEG", 51, mode="CMYK")
    write(train / "large.JPEG", 52, size=(40, 30), format="PNG")
    write(train / "small.JPEG", 53, size=(30, 3))  # wider than others, of fewer pixels
    notes = Image.Exif()
    notes[0x0112] = 6
    write(train / "turned.JPEG", 54, exif=notes)
    code, report = here("imagenet", root)
    assert code == 0
    assert report["kinds"] == {
        "JPEG RGB": 16,
        "JPEG L": 1,
        "JPEG CMYK": 1,
        "PNG RGB": 1,
        "JPEG RGB turned": 1,
    }
    assert report["smallest"] == {"path": str(train / "small.JPEG"), "width": 30, "height": 3}
    assert report["largest"] == {"path": str(train / "large.JPEG"), "width": 40, "height": 30}


def test_duplicates_within_a_class_across_classes_and_across_splits(root, here):
    first, second, third = (root / "train" / wnid / f"{wnid}_0.JPEG" for wnid in WNIDS)
    copies = {
        "class": (first, first.with_name("copy.JPEG")),
        "classes": (second, third.with_name("copy.JPEG")),
        "splits": (third, root / "val" / WNIDS[2] / "copy.JPEG"),
    }
    for source, copy in copies.values():
        shutil.copy(source, copy)
    code, report = here("imagenet", root)
    assert code == 0  # they do no harm to a run
    found = {group["within"]: set(group["paths"]) for group in report["duplicates"]}
    assert found == {within: {str(a), str(b)} for within, (a, b) in copies.items()}
    assert len(report["duplicates"]) == 3


def faults(root):
    return tree_of("imagenet", root).problems


def test_faults_of_the_layout(root, here):
    shutil.rmtree(root / "train" / WNIDS[0])
    (root / "train" / "n02").mkdir()
    code, report = here("imagenet", root)
    assert code == 1 and report["broken"] == []
    differ, empty = report["problems"]
    assert "n02 only in train" in differ and f"{WNIDS[0]} only in val" in differ
    assert empty == f"{root / 'train' / 'n02'}: expected images, got none"
    assert report["files"] == 12  # what is there is decoded all the same


def test_missing_and_flat_splits(root):
    for image in list((root / "val").rglob("*.JPEG")):
        image.rename(root / "val" / image.name)
    for wnid in WNIDS:
        (root / "val" / wnid).rmdir()
    assert len(faults(root)) == 1 and f"expected a folder for each class in {root / 'val'}" in faults(root)[0]
    shutil.rmtree(root / "val")
    assert len(faults(root)) == 1 and f"{root / 'val'}, which does not exist" in faults(root)[0]
    assert [part.split for part in tree_of("imagenet", root).parts] == ["train"]


def test_list_files(root, here):
    for split in ("train", "val"):
        lines = [
            f"{image.parent.name}/{image.name} {WNIDS.index(image.parent.name)}\n"
            for image in sorted((root / split).rglob("*.JPEG"))
        ]
        (root / f"{split}.txt").write_text("".join(lines))
    code, report = here("imagenet", root)
    assert code == 0 and report["counts"]["val"] == dict.fromkeys(WNIDS, 2)
    with (root / "val.txt").open("a") as file:
        file.write(f"{WNIDS[0]}/none.JPEG 0\n")
    code, report = here("imagenet", root)
    assert code == 1 and len(report["problems"]) == 1 and "val.txt:7" in report["problems"][0]


def test_folders_with_and_without_splits(root, here, tmp_path):
    code, report = here("folder", root)
    assert code == 0 and list(report["counts"]) == ["train", "val"]
    code, report = here("folder", root / "train")
    assert code == 0 and report["counts"] == {"all": dict.fromkeys(WNIDS, 3)}
    shutil.copytree(root / "val", root / "test")
    code, report = here("folder", root)
    assert list(report["counts"]) == ["train", "val", "test"]
    assert [group["within"] for group in report["duplicates"]] == ["splits"] * 6
    (tmp_path / "bare").mkdir()
    code, report = here("folder", tmp_path / "bare")
    assert code == 1 and report["files"] == 0


@pytest.mark.parametrize(("data", "build"), [("cityscapes", cityscapes_tree), ("ade20k", ade20k_tree)])
def test_images_and_masks(here, tmp_path, data, build):
    place = build(tmp_path / "pairs", odd=True)
    code, report = here(data, place)
    assert code == 0 and report["problems"] == report["broken"] == []
    assert report["counts"] == {
        "train": {"images with a mask": 3},
        "val": {"images with a mask": 2},
    }
    masks, images = MASKS[data], IMAGES[data]
    wrong, unknown, broken = (sorted(place.glob(masks.format(MASK_SPLITS[data][0])))[i] for i in range(3))
    height, width = pixels_of(wrong).shape
    save(wrong, pixels_of(wrong)[:-1])
    ids = pixels_of(unknown)
    ids[0, :2] = 200
    save(unknown, ids)
    broken.write_bytes(b"no image")
    first, second = (sorted(place.glob(kind.format(MASK_SPLITS[data][1])))[0] for kind in (masks, images))
    first.unlink()
    code, report = here(data, place)
    assert code == 1 and report["problems"] == [f"{second}: has no mask"]
    reasons = [one["reason"] for one in report["broken"]]
    places = zip((wrong, unknown, broken), reasons, strict=True)
    assert all(reason.startswith(str(mask)) for mask, reason in places)
    assert f"expected {width} × {height} (width × height) as" in reasons[0]
    assert "as ids, got 200 at 2 of" in reasons[1] and "no image of a known format" in reasons[2]


@pytest.mark.parametrize(("data", "build"), [("cityscapes", cityscapes_tree), ("ade20k", ade20k_tree)])
def test_an_empty_and_a_missing_split(here, tmp_path, data, build):
    place = build(tmp_path / "pairs")
    for image in place.glob(IMAGES[data].format(MASK_SPLITS[data][0])):
        image.unlink()
    shutil.rmtree(place / MASKS[data].format(MASK_SPLITS[data][1]).partition("/*")[0])
    code, report = here(data, place)
    assert code == 1 and report["files"] == 0
    empty, missing = report["problems"]
    assert "expected images *" in empty and empty.endswith("got none")
    assert missing.startswith("data.root: expected a folder ") and missing.endswith("which does not exist")


def test_instance_ids_are_checked_with_their_masks(here, tmp_path):
    place = cityscapes_tree(tmp_path / "pairs")
    missing, broken = sorted((place / "gtFine/train").glob("*/*_instanceIds.png"))[:2]
    missing.unlink()
    broken.write_bytes(b"no image")
    code, report = here("cityscapes", place)
    assert code == 1 and report["problems"] == [f"{missing}: missing, where others are"]
    assert [one["reason"].partition(":")[0] for one in report["broken"]] == [str(broken)]


def test_masks_are_checked_by_workers_too(tmp_path):
    place = cityscapes_tree(tmp_path / "pairs", train=2, val=1)
    mask = sorted(place.glob(MASKS["cityscapes"].format("train")))[0]
    mask.write_bytes(b"no image")
    tree = tree_of("cityscapes", place)
    reasons = {(part, row): verdict.reason for part, row, verdict in verify(tree, 1)}
    assert reasons == {(0, 0): f"{mask}: no image of a known format", (0, 1): "", (1, 0): ""}


def test_text_and_csv_say_the_same(root, here):
    broken = root / "val" / WNIDS[0] / "broken.JPEG"
    broken.write_text("no image")
    shutil.copy(root / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG", root / "val" / WNIDS[0] / "copy.JPEG")
    code, text = here("imagenet", root, "report.txt")
    assert code == 1
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == f"imagenet in {root}: 17 files"
    assert f"{broken}: no image of a known format" in lines and "duplicates (1)" in lines
    counts = lines[lines.index("val, files of each class (3)") + 1 :]
    assert counts == [f"{WNIDS[0]}: 4", f"{WNIDS[1]}: 2", f"{WNIDS[2]}: 2"]

    here("imagenet", root, "report.csv")
    with (root.parent / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = {kind: [row for row in rows if row["finding"] == kind] for kind in ("broken", "duplicate", "count")}
    assert [(row["path"], row["detail"]) for row in of["broken"]] == [
        (str(broken), "no image of a known format")
    ]
    assert {row["detail"] for row in of["duplicate"]} == {"group 1, within splits"}
    assert sum(int(row["detail"]) for row in of["count"]) == 17


def test_equal_rows():
    digests = np.array([b"a", b"b", b"a", b"c", b"b", b"a"], "S1").view("V1")
    assert equal_rows(digests, np.arange(10, 16)) == [[10, 12, 15], [11, 14]]
    assert equal_rows(digests[:2], np.arange(2)) == [] == equal_rows(digests[:0], np.arange(0))


def test_workers_give_what_one_process_gives(root, monkeypatch):
    monkeypatch.setattr(
        verify_module, "_CHUNK", 2
    )  # more chunks than wait at once: 5 and 3 of the two splits
    (root / "val" / WNIDS[2] / "broken.JPEG").write_text("no image")
    tree = tree_of("imagenet", root)
    done = []
    verdicts = {(part, index): verdict for part, index, verdict in verify(tree, 1, done.append)}
    assert sum(done) == len(tree) == 16
    assert verdicts == {
        (number, row): verify_file(str(part.files.path(row)))
        for number, part in enumerate(tree.parts)
        for row in range(len(part.files))
    }
    gatherer = Gatherer(tree)
    for (part, index), verdict in verdicts.items():
        gatherer.add(part, index, verdict)
    assert [one["path"][-11:] for one in gatherer.findings("imagenet", root).broken] == ["broken.JPEG"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["imagnet", "."],
            "data: expected one of imagenet, folder, cityscapes, ade20k, webvision, got 'imagnet' (did",
        ),
        (["imagenet"], "the following arguments are required: root"),
        (["imagenet", "no/such"], "root: expected a folder, got 'no/such'"),
        (["imagenet", ".", "--workers", "0"], "--workers: expected a positive number, got 0"),
        (
            ["imagenet", ".", "--report", "r.pdf"],
            "--report: expected a file .txt, .json, .csv in a folder",
        ),
        (
            ["imagenet", ".", "--report", "no/r.txt"],
            "--report: expected a file .txt, .json, .csv in a folder",
        ),
    ],
)
def test_bad_arguments(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and complaint in lines[0]


@pytest.mark.slow
def test_interrupt_leaves_cleanly(root):
    many = root / "train" / WNIDS[0]
    source = write(many / "large.JPEG", 7, size=(1500, 1500))
    for number in range(3000):
        (many / f"link{number}.JPEG").symlink_to(source)
    command = [sys.executable, "-u", "-m", "tasks.check_data", "imagenet", str(root), "--workers", "1"]
    command += ["--report", str(root.parent / "r.txt")]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env=os.environ | {"FORCE_COLOR": "1"}
    )
    seen = ""
    while "32/3016" not in seen:  # the first chunk is done
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: no report was written" in rest and "Traceback" not in rest
    assert not (root.parent / "r.txt").exists()
