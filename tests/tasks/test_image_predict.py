"""Images are predicted from a checkpoint alone: the training data are deleted before."""

import numpy as np
import pytest
import torch
from image_fits import fit_and_forget
from image_trees import NAMES, break_file, digit_picture, save_jpeg
from run_files import rows_of

from tasks.classification import load_classifier
from tasks.classification.export import export
from tasks.images import read_image

GOOD = ["a/c/d.JPG", "a/z.jpeg", "b.jpg", "c.jpg"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit_and_forget(tmp_path_factory.mktemp("fit"))


@pytest.fixture
def pictures(tmp_path):
    """Four images, one cut short, a page in an image's place and a text."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "pictures"
    for label, name in enumerate((*GOOD, "a/cut.jpg", "page.JPEG")):
        save_jpeg(folder / name, digit_picture(generator, label % 3))
    break_file(folder / "a/cut.jpg", "truncated")
    break_file(folder / "page.JPEG", "text")
    (folder / "a/notes.txt").touch()
    return folder


def check(rows, run, pictures, top=1):
    """Rows are the classifier's `top` classes of each good image, in the order of the files."""
    model = load_classifier(run)
    assert [row["sample"] for row in rows] == [name for name in GOOD for _ in range(top)]
    for start, name in zip(range(0, len(rows), top), GOOD, strict=True):
        with torch.no_grad():
            (wanted,) = model(model.preprocess(read_image(pictures / name))[None])
        order = sorted(range(3), key=lambda label: -wanted[label])[:top]
        for row, label in zip(rows[start : start + top], order, strict=True):
            assert row["predicted"] == NAMES[label] and row["true"] == ""
            # Six decimals, and float32 rounding at another batch size.
            assert float(row["probability"]) == pytest.approx(float(wanted[label]), abs=2e-6)


@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_a_folder_of_images(cli, run, pictures, tmp_path, kind):
    best = run / "checkpoints/best.ckpt"
    path = {"run": lambda: run, "checkpoint": lambda: best, "export": lambda: export(best, tmp_path / "out")}
    options = ("--output", tmp_path / "table.csv", "--batch_size", 2, "--num_workers", 2)
    outcome = cli("predict", "--ckpt_path", path[kind](), "--images", pictures, *options)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"4 predictions written to {tmp_path / 'table.csv'}\n"
    check(rows_of(tmp_path / "table.csv"), run, pictures)
    cut, page, count = outcome.err.splitlines()
    assert cut.startswith(f"unreadable, left out: {pictures}/a/cut.jpg: ") and "truncated" in cut
    assert page == f"unreadable, left out: {pictures}/page.JPEG: no image of a known format"
    assert count == "2 of 6 images are unreadable and left out"


def test_tables_lie_in_the_run_or_here(cli, run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A configuration beside it is not looked at.
    outcome = cli("predict", "--config", "none.yaml", f"--images={pictures}", "--ckpt_path", run)
    assert outcome.code == 0 and f"written to {run / 'predictions.csv'}" in outcome.out, outcome.err
    check(rows_of(run / "predictions.csv"), run, pictures)
    exported = export(run / "checkpoints/best.ckpt", tmp_path / "out")
    outcome = cli("predict", "--images", pictures, "--ckpt_path", exported, "--top", 2)
    assert outcome.code == 0 and "8 predictions written to predictions.csv" in outcome.out, outcome.err
    check(rows_of(tmp_path / "predictions.csv"), run, pictures, top=2)


def test_one_image_is_shown_too(cli, run, pictures, tmp_path):
    image = (pictures / "b.jpg").rename(pictures / "b[red].jpg")
    outcome = cli("predict", "--ckpt_path", run, "--images", image, "--output", tmp_path / "one.csv")
    assert outcome.code == 0 and outcome.err == ""
    (row,) = rows_of(tmp_path / "one.csv")
    model = load_classifier(run)
    with torch.no_grad():
        (wanted,) = model(model.preprocess(read_image(image))[None])
    assert row["sample"] == "b[red].jpg" and row["predicted"] == NAMES[int(wanted.argmax())]
    written, title, *table = outcome.out.splitlines()
    assert written == f"1 prediction written to {tmp_path / 'one.csv'}" and title.strip() == "b[red].jpg"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if "│" in line]
    order = wanted.argsort(descending=True).tolist()
    assert cells == [[NAMES[label], f"{float(wanted[label]):.4f}"] for label in order]


def test_images_that_cannot_be_read_at_all(cli, run, pictures, tmp_path):
    table = tmp_path / "none.csv"
    outcome = cli("predict", "--ckpt_path", run, "--images", pictures / "page.JPEG", "--output", table)
    assert outcome.code == 2 and not table.exists() and outcome.out == ""
    named, error = outcome.err.splitlines()
    assert named == f"unreadable, left out: {pictures}/page.JPEG: no image of a known format"
    assert error == f"error: --images: expected an image that can be read, got none in {pictures}/page.JPEG"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"--images": "nowhere"}, "--images: expected an image or a folder, got 'nowhere', which does not"),
        ({"--images": "empty"}, "--images: expected images (.jpg, .jpeg, "),
        ({"--ckpt_path": "nowhere"}, "got 'nowhere', which does not exist"),
        ({"--ckpt_path": "empty"}, "got 'empty', which holds no checkpoint"),
        ({"--top": "4"}, "--top: expected at most 3, the number of classes, got 4"),
        ({"--batch_size": "0"}, "predict: argument --batch_size: expected an integer ≥ 1, got '0'"),
        ({"--num_workers": "two"}, "predict: argument --num_workers: expected an integer ≥ 0, got 'two'"),
        ({"--output": "empty"}, "--output: expected a file in a folder that can be written to, got 'empty'"),
        ({"--output": "nowhere/a.csv"}, "--output: expected a file in a folder that can be written to"),
        ({"--trainer.devices": "1"}, "predict: unrecognized arguments: --trainer.devices 1"),
    ],
)
def test_bad_options_are_one_line(cli, run, pictures, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    given = {"--ckpt_path": run, "--images": pictures, "--output": "table.csv", **options}
    outcome = cli("predict", *(part for option in given.items() for part in option))
    assert outcome.code == 2 and told in outcome.error
    assert not (tmp_path / "table.csv").exists()
