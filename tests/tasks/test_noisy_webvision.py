"""WebVision's lists and protocols on a tree in its layout."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from image_trees import refused
from task_paths import REPOSITORY
from webvision_tree import SYNSETS, TITLES, imagenet_val, webvision_tree

from tasks.noisy_labels.filelists import read_synsets
from tasks.noisy_labels.webvision import WebVisionDataModule, tree

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webvision")
    return {
        "root": webvision_tree(folder / "webvision"),
        "resized": webvision_tree(folder / "resized", google=2, flickr=1, val=1, wrong=0, resized=True),
        "imagenet": imagenet_val(folder / "imagenet"),
    }


@pytest.fixture
def lists(tmp_path):
    """A tree of two images a class, to spoil; and a writer of Google's list."""
    root = webvision_tree(tmp_path / "webvision", google=2, flickr=1, val=1, wrong=0)
    path = root / "info" / "train_filelist_google.txt"
    return root, path, path.read_text().splitlines()


def module(root, **options):
    return WebVisionDataModule(str(root), num_workers=0, batch_size=4, **options)


def files_of(data, split):
    files = data.files(split)
    return [(files.name(i), int(files.labels[i])) for i in range(len(files))]


@pytest.mark.parametrize(
    ("source", "first", "count"),
    [("google", "google/q0001/g0000.jpg", 32), ("flickr", "flickr/q0001/f0000.jpg", 16)],
)
def test_one_source(roots, source, first, count):
    files = files_of(module(roots["root"], source=source, protocol="full"), "train")
    assert len(files) == count and files[0] == (first, 0)
    assert [label for _, label in files] == sorted(4 * list(range(4)) * (count // 16))


def test_both_sources_follow_each_other(roots):
    data = module(roots["root"], source="both")
    assert files_of(data, "train") == [
        *files_of(module(roots["root"], source="google"), "train"),
        *files_of(module(roots["root"], source="flickr"), "train"),
    ]
    assert data.files("train").path(40).is_file()


def test_the_prefix_names_the_resized_images(roots):
    data = module(roots["resized"], source="both", train_prefix="{source}_resized_256")
    names = [name for name, _ in files_of(data, "train")]
    assert names[0] == "google_resized_256/q0001/g0000.jpg"
    assert names[8] == "flickr_resized_256/q0001/f0000.jpg"
    assert len(names) == 12 and all(data.files("train").path(i).is_file() for i in range(12))
    refused(
        lambda: module(roots["resized"]).files("train"), "8 of 8 files are missing", "line 1: google/q0001"
    )


def test_mini_is_the_first_fifty_classes(roots, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.noisy_labels.webvision._MINI", 2)
    data = module(roots["root"])
    assert (data.num_classes, data.classes, data.class_names) == (2, SYNSETS[:2], TITLES[:2])
    for split, count in (("train", 16), ("val", 6), ("test", 6)):
        assert [label for _, label in files_of(data, split)] == sorted([0, 1] * (count // 2)), split
    assert module(roots["root"], protocol="full").num_classes == 4


def test_imagenet_is_matched_by_wnid(roots):
    """By position in sorted order, the labels would be those of other classes."""
    data = module(roots["root"], imagenet_root=str(roots["imagenet"]), protocol="full")
    assert files_of(data, "imagenet") == [
        (name, label)
        for label, wnid in enumerate(SYNSETS)
        for name in sorted(f"{wnid}/{path.name}" for path in (roots["imagenet"] / "val" / wnid).iterdir())
    ]
    assert sorted(SYNSETS) != SYNSETS
    first, second = data.val_dataloader()
    assert (len(first.dataset), len(second.dataset)) == (12, 8)
    assert len(data.test_dataloader()) == 2
    refused(lambda: module(roots["root"], imagenet_root=str(roots["root"])), "data.imagenet_root", "val")


def test_the_bare_validation_names_of_the_list(roots):
    data = module(roots["root"], protocol="full")
    assert files_of(data, "val")[0] == ("val000001.jpg", 0)
    assert data.files("val").root == roots["root"] / "val_images_256"
    refused(
        lambda: module(roots["root"], val_prefix="val_images").files("val"), "data.val_prefix", "val_images"
    )


def test_missing_and_repeated_lines_are_left_out_and_counted_once(lists, capsys):
    root, path, lines = lists
    (root / "google/q0002/g1001.jpg").unlink()
    path.write_text("\n".join([*lines, lines[0], lines[5]]) + "\n")
    data = module(root, max_missing=0.2)
    kept = [line.rsplit(" ", 1) for line in lines if "g1001" not in line]
    assert files_of(data, "train") == [(name, int(label)) for name, label in kept]
    data.files("train")
    told = f"{path}: left out 1 missing (line 4: google/q0002/g1001.jpg) and 2 repeated of 10 lines\n"
    assert capsys.readouterr().out == told
    refused(
        lambda: module(root).files("train"),
        f"{path}: 1 of 10 files are missing, more than data.max_missing (0.01) allows",
        "line 4: google/q0002/g1001.jpg",
    )


def test_windows_line_ends(lists):
    root, path, lines = lists
    expected = files_of(module(root), "train")
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    synsets = root / "info/synsets.txt"
    synsets.write_bytes(synsets.read_bytes().replace(b"\n", b"\r\n"))
    data = module(root)
    assert files_of(data, "train") == expected
    assert (data.classes, data.class_names) == (SYNSETS, TITLES)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("google/q0001/g0000.jpg 4", "expected a label from 0 to 3, got 4 (1 such lines)"),
        ("google/q0001/g0000.jpg 2", "expected label 0 for google/q0001/g0000.jpg, as in line 1, got 2"),
        ("google/../../etc/passwd 0", "expected a file below the data's root, got 'google/../../etc/passwd'"),
        ("/etc/passwd 0", "expected a file below the data's root, got '/etc/passwd'"),
        ("google/q0001/g0000.jpg", "expected <file> <label>, got 'google/q0001/g0000.jpg'"),
        ("google/q0001/g0000.jpg -1", "expected <file> <label>, got 'google/q0001/g0000.jpg -1'"),
    ],
)
def test_refused_lines(lists, line, told):
    root, path, lines = lists
    path.write_text("\n".join([*lines, line]) + "\n")
    refused(lambda: module(root).files("train"), f"{path}:9: {told}")


def test_a_link_out_of_the_root_is_refused(lists, tmp_path):
    root, path, _ = lists
    outside = tmp_path / "outside.jpg"
    (root / "google/q0001/g0001.jpg").rename(outside)
    (root / "google/q0001/g0001.jpg").symlink_to(outside)
    refused(lambda: module(root).files("train"), f"{path}:2", "a link out of it")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"train_prefix": "../{source}"}, "data.train_prefix: expected a folder below the data's root"),
        ({"val_prefix": "/etc"}, "data.val_prefix: expected a folder below the data's root, got '/etc'"),
        ({"max_missing": 1.0}, "data.max_missing: expected a number in [0, 1), got 1.0"),
    ],
)
def test_bad_options(roots, options, told):
    refused(lambda: module(roots["root"], **options), told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "synsets.txt: expected lines of <wnid> <names>, got an empty file"),
        ("n01440764\n", "synsets.txt:1: expected <wnid> <names>, got 'n01440764'"),
        ("n01440764 a\nx b\n", "synsets.txt:2: expected <wnid> <names>, got 'x b'"),
        ("n01440764 a\nn01440764 b\n", "synsets.txt:2: expected each wnid once, got n01440764 again"),
    ],
)
def test_bad_synsets(tmp_path, text, told):
    path = tmp_path / "synsets.txt"
    path.write_text(text)
    refused(lambda: read_synsets(path), told)


def test_the_lists_are_shared_by_loaders(roots):
    """No Python object a file: arrays alone, which forked processes share page by page."""
    data = module(roots["root"], source="both")
    data.setup("fit")
    files = pickle.loads(pickle.dumps(data.files("train")))
    arrays = [value for value in vars(files).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 3 and {array.dtype for array in arrays} == {np.dtype("u1"), np.dtype("i8")}
    assert {type(value).__name__ for value in vars(files).values()} == {"ndarray", "PosixPath"}


def test_what_check_data_looks_at(roots, lists):
    found = tree(roots["root"])
    assert [(part.split, len(part.files)) for part in found.parts] == [
        ("google", 32),
        ("flickr", 16),
        ("val", 12),
    ]
    assert found.problems == [] and found.parts[0].classes == SYNSETS
    assert [len(part.files) for part in tree(roots["resized"]).parts] == [8, 4, 4]
    root, path, _ = lists
    (root / "google/q0002/g1001.jpg").unlink()
    (root / "info/train_filelist_flickr.txt").write_text("flickr/q0001/f0000.jpg 9\n")
    found = tree(root)
    assert [(part.split, len(part.files)) for part in found.parts] == [("google", 7), ("val", 4)]
    assert found.problems[0].startswith(f"{path}: left out 1 missing (line 4")
    assert "expected a label from 0 to 3, got 9" in found.problems[1]


@pytest.mark.slow
def test_a_list_of_the_real_length_needs_less_than_a_gibibyte(tmp_path):
    """In a process of its own; the files themselves are left out, see the job."""
    line = [sys.executable, str(REPOSITORY / "tests/tasks/noisy_list_job.py"), str(tmp_path / "list.txt")]
    job = subprocess.run(line, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    seconds, kilobytes, before, count = job.stdout.split()
    print(f"{count} lines: {float(seconds):.1f} s of one core, {int(kilobytes) / 2**20:.2f} GiB in all")
    assert int(count) == 2_400_000
    assert int(kilobytes) < 2**20 and int(before) < int(kilobytes)
