"""Unreadable images: replaced in training and listed once; an error in evaluation, or when they are many."""

import fcntl
import multiprocessing
import shutil
import time

import pytest
import torch
from image_trees import break_file, imagenet_tree

from tasks.classification.imagenet import ImageNetDataModule
from tasks.data import SeededDataset
from tasks.errors import UserError
from tasks.images import UnreadableImage
from tasks.samplers import seed_for
from tasks.unreadable import TooManyUnreadable, UnreadableFiles, summary

BROKEN = {1: "truncated", 6: "text", 7: "empty"}  # training images


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return imagenet_tree(tmp_path_factory.mktemp("trees") / "imagenet", classes=3, train=4, val=2)


@pytest.fixture
def tree(original, tmp_path):
    root = shutil.copytree(original, tmp_path / "imagenet")
    paths = sorted((root / "train").glob("*/*"))
    for index, kind in BROKEN.items():
        break_file(paths[index], kind)
    return root


def imagenet(root, log=None, **options):
    options = {"num_workers": 0, "max_unreadable": 0.5, "batch_size": 4, **options}
    data = ImageNetDataModule(str(root), train_size=32, eval_resize=32, eval_size=32, **options)
    data.setup("fit")
    data.unreadable_log = log
    return data


def paths_in(log):
    return [line.split("\t")[1] for line in log.read_text().splitlines()]


def test_another_image_comes_with_its_own_label_and_index(tree, tmp_path):
    data = imagenet(tree, seed=4)
    log = tmp_path / "unreadable.txt"
    examples = data.examples("train")
    dataset = SeededDataset(examples, 4, UnreadableFiles(log, "train", 12, 0.5))
    for index in BROKEN:
        image, label, used = dataset[2, index]
        candidates = (seed_for(4, index, attempt) % 12 for attempt in range(100))
        assert used == next(other for other in candidates if other not in BROKEN)
        assert label == data.labels("train")[used] == used // 4
        # The augmentation is that of the key, so that two copies of an image in an epoch differ.
        torch.manual_seed(seed_for(4, 2, index))
        assert torch.equal(image, examples[used][0])
        assert torch.equal(dataset[2, index][0], image)
    assert dataset[2, 0][2] == 0
    with pytest.raises(UnreadableImage):
        SeededDataset(examples, 4)[0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_file_is_listed_once_over_workers_and_epochs(tree, tmp_path, workers, capfd):
    log = tmp_path / "unreadable.txt"
    data = imagenet(tree, log, num_workers=workers)
    loader = data.train_dataloader()
    seen = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        seen += [index for *_, indices in loader for index in indices.tolist()]
    assert len(seen) == 36 and not set(seen) & set(BROKEN)
    broken = [str(data.files("train").path(index)) for index in BROKEN]
    assert sorted(paths_in(log)) == broken
    reasons = dict(line.split("\t")[1:] for line in log.read_text().splitlines())
    assert all(line.startswith("train\t") for line in log.read_text().splitlines())
    assert reasons[broken[2]] == "empty file" and all(reasons.values())
    err = capfd.readouterr().err
    assert err.count("warning: ") == 1 and str(log) in err and err.count("\n") == 1
    assert data.unreadable_summary() == f"3 unreadable images, listed in {log}"
    # Another run over the same log, as after a resume, has nothing to add.
    list(imagenet(tree, log).train_dataloader())
    assert sorted(paths_in(log)) == broken and capfd.readouterr().err == ""


def test_without_a_log_there_is_a_temporary_one(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = imagenet(tree)
    list(data.val_dataloader())
    assert data.unreadable_summary() == "" and not data.unreadable_log.exists()
    list(data.train_dataloader())
    assert data.unreadable_summary() == f"3 unreadable images, listed in {data.unreadable_log}"
    assert list((tmp_path / "temporary").iterdir()) == [data.unreadable_log]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_are_one_line_for_the_user(tree, tmp_path, workers):
    log = tmp_path / "unreadable.txt"
    # 3 of 12 is not more than a quarter.
    list(imagenet(tree, log, max_unreadable=0.25, num_workers=workers).train_dataloader())
    log.unlink()
    # 2 of 12 are let pass, the third is more than a fifth.
    loader = imagenet(tree, log, max_unreadable=0.2, num_workers=workers).train_dataloader()
    with pytest.raises(UserError) as caught:
        list(loader)
    told = str(caught.value)
    assert told.startswith("unreadable images in train: 3 of 12, more than data.max_unreadable (0.2)")
    assert f"they are listed in {log}: " in told and "\n" not in told and "Traceback" not in told
    assert all(path in told for path in paths_in(log)) and len(paths_in(log)) == 3


def test_the_message_names_ten(tmp_path):
    files = UnreadableFiles(tmp_path / "log", "train", 24, 0.5)
    for number in range(12):
        files.note(UnreadableImage(f"{number:02d}.jpg", "cut\nshort"))
    with pytest.raises(TooManyUnreadable) as caught:
        files.note(UnreadableImage("12.jpg", "cut short"))
    assert "09.jpg, …" in str(caught.value) and "10.jpg" not in str(caught.value)
    assert len(paths_in(tmp_path / "log")) == 13
    # It reaches the training process as its traceback.
    text = (
        f"Caught it in worker 0.\nOriginal Traceback …\ntasks.unreadable.TooManyUnreadable: {caught.value}\n"
    )
    assert str(TooManyUnreadable(text)) == str(caught.value)


def test_the_splits_count_apart(tmp_path):
    train, val = (UnreadableFiles(tmp_path / "log", split, 10, 0.1) for split in ("train", "val"))
    train.note(UnreadableImage("a.jpg", "cut"))
    val.note(UnreadableImage("b.jpg", "cut"))
    with pytest.raises(UserError, match="in val: 2 of 10, "):
        val.note(UnreadableImage("c.jpg", "cut"))
    assert summary(tmp_path / "log") == f"3 unreadable images, listed in {tmp_path / 'log'}"


def note_many(log, first, start):
    files = UnreadableFiles(log, "train", 1000, 0.9)
    start.wait()
    for number in range(first, first + 40):
        files.note(UnreadableImage(f"{number}.jpg", "cut"))


def test_processes_write_one_after_the_other(tmp_path):
    context = multiprocessing.get_context("fork")
    start, log = context.Event(), tmp_path / "log"
    processes = [context.Process(target=note_many, args=(log, first, start)) for first in (0, 20, 20, 40)]
    for process in processes:
        process.start()
    with log.open("a") as file:  # opened last: a process that inherits the file would hold the lock as well
        fcntl.flock(file, fcntl.LOCK_EX)
        start.set()
        time.sleep(0.5)
        assert all(process.is_alive() for process in processes), "they wait for the lock"
        file.write("train\t50.jpg\tcut\n")
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert paths_in(log)[0] == "50.jpg"
    assert sorted(paths_in(log)) == sorted(f"{number}.jpg" for number in range(80))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_an_evaluation_ends_at_the_first(tree, tmp_path, split, workers):
    break_file(sorted((tree / "val").glob("*/*"))[1], "text")
    data = imagenet(tree, tmp_path / "log", max_unreadable=0.9, num_workers=workers)
    told = rf"^unreadable image in {split}: .*_00000002\.JPEG \(no image of a known format\): "
    with pytest.raises(UserError, match=told) as caught:
        list(getattr(data, f"{split}_dataloader")())
    assert "\n" not in str(caught.value)
