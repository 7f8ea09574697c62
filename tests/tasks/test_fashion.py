"""Fashion-MNIST from its files, in all the layouts that they come in."""

import os

import numpy as np
import pytest
import torch
from idx_files import fashion_files, idx
from torchvision.transforms import v2

from tasks.classification import fashion
from tasks.classification.fashion import DEBIAN, FILES, FashionDataModule, folder_of
from tasks.data import SeededDataset
from tasks.errors import UserError

LAYOUTS = {
    "the files": ("", True),
    "the files, unpacked": ("", False),
    "torchvision's": ("FashionMNIST/raw", False),
    "torchvision's, packed": ("FashionMNIST/raw", True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts(tmp_path, layout):
    below, packed = LAYOUTS[layout]
    parts = fashion_files(tmp_path / "root" / below, packed=packed)
    data = FashionDataModule(str(tmp_path / "root"), image_size=28)
    data.prepare_data()
    data.setup("fit")
    assert [len(data.rows[split]) for split in ("train", "val", "test")] == [50, 10, 20]
    assert data.class_name(0) == "T-shirt/top" and data.class_name(9) == "Ankle boot"
    for split, (images, labels) in (
        ("train", parts["train"]),
        ("val", parts["train"]),
        ("test", parts["t10k"]),
    ):
        offset = 60 if split == "test" else 0
        rows = data.rows[split] - offset
        assert data.labels(split).tolist() == labels[rows].tolist()
        # At its own size an image keeps its bytes, in all three channels.
        for index in (0, 7):
            picture = data.picture(split, index)
            assert torch.equal(picture, torch.from_numpy(images[rows[index]]).expand(3, -1, -1))
            assert data.sample_name(split, index) == str(rows[index] + offset)
    # The split is disjoint, whole and stratified: six of each class, five to train on.
    assert sorted([*data.rows["train"], *data.rows["val"]]) == list(range(60))
    assert np.bincount(data.labels("train")).tolist() == [5] * 10
    assert sorted(path.name for path in (tmp_path / "root" / below).iterdir()) == sorted(
        name + ".gz" * packed for name in FILES
    )


def test_the_network_s_input(tmp_path):
    parts = fashion_files(tmp_path / "root")
    data = FashionDataModule(str(tmp_path / "root"), augment=False)
    data.setup("fit")
    image, label = data.examples("train")[3]
    images, labels = parts["train"]
    row = data.rows["train"][3]
    bytes_ = v2.functional.resize(torch.from_numpy(images[row])[None], [32, 32], antialias=True)
    expected = ((bytes_.double() / 255 - 0.5) / 0.25).expand(3, -1, -1)
    assert image.dtype == torch.float32 and label == labels[row]
    # Two float32 roundings of values up to 2.
    torch.testing.assert_close(image.double(), expected, atol=1e-6, rtol=0)


def test_training_images_are_shifted_and_flipped(tmp_path):
    fashion_files(tmp_path / "root")
    data = FashionDataModule(str(tmp_path / "root"))
    data.setup("fit")
    plain = data.view("train", training=False)[0][0]
    padded = torch.nn.functional.pad(plain, (4, 4, 4, 4), value=-2.0)  # black: (0 − 0.5)/0.25
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    candidates = windows + [window.flip(-1) for window in windows]
    dataset = SeededDataset(data.examples("train"), 0)
    found = []
    for epoch in range(20):
        image = dataset[epoch, 0][0]
        found.append([n for n, candidate in enumerate(candidates) if torch.equal(image, candidate)])
    assert all(len(hits) == 1 for hits in found) and len({hits[0] for hits in found}) > 10
    still = FashionDataModule(str(tmp_path / "root"), augment=False)
    still.setup("fit")
    assert torch.equal(SeededDataset(still.examples("train"), 0)[5, 0][0], plain)


def test_a_style_keeps_to_its_image_whatever_the_split_and_the_samples(tmp_path):
    fashion_files(tmp_path / "root")
    options = {"styles": ["contrast", "blur"], "augment": False}
    whole, few = (FashionDataModule(str(tmp_path / "root"), train_samples=n, **options) for n in (None, 20))
    for data in (whole, few):
        data.setup("fit")
    index = whole.rows["train"].tolist().index(few.rows["train"][7])
    assert few.style_of("train", 7) == whole.style_of("train", index)
    assert torch.equal(few.examples("train")[7][0], whole.examples("train")[index][0])
    assert np.bincount(few.labels("train")).tolist() == [2] * 10
    # Test images are other images: none has the style of a training image of the same number.
    assert all(whole.style_of("test", n) != whole.style_of("train", n) for n in range(20))


def test_files_that_are_not_there_are_told(tmp_path, monkeypatch):
    told = (
        r"data\.root: expected train-images-idx3-ubyte, .* got 0 of 4: .*dataset-fashion-mnist.*download true"
    )
    with pytest.raises(UserError, match=told):
        FashionDataModule(str(tmp_path))
    fashion_files(tmp_path / "root")
    (tmp_path / "root" / f"{FILES[1]}.gz").unlink()
    with pytest.raises(UserError, match="got 3 of 4"):
        FashionDataModule(str(tmp_path / "root"))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/fashion or its FashionMNIST/raw, got 0 of 4"):
        FashionDataModule()
    fashion_files(tmp_path / "data" / "fashion")
    assert folder_of(FashionDataModule().root).resolve() == tmp_path / "data" / "fashion"


def test_download_is_torchvision_s_and_only_where_nothing_is_there(tmp_path, monkeypatch):
    asked = []

    def fetch(self):
        asked.append(self.root)
        fashion_files(tmp_path / "root" / "FashionMNIST" / "raw", packed=False)

    monkeypatch.setattr(fashion.datasets.FashionMNIST, "download", fetch)
    for _ in range(2):
        data = FashionDataModule(str(tmp_path / "root"), download=True)
        data.prepare_data()
        data.setup("fit")
    assert [str(root) for root in asked] == [str(tmp_path / "root")] and len(data.labels("test")) == 20

    def fail(self):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(fashion.datasets.FashionMNIST, "download", fail)
    with pytest.raises(UserError, match=r"data\.root: cannot fetch Fashion-MNIST into .*: Error downloading"):
        FashionDataModule(str(tmp_path / "other"), download=True).prepare_data()


IMAGES, LABELS = np.zeros((60, 28, 28)), np.arange(60) % 10
BROKEN = {
    "cut": (FILES[0], idx(IMAGES)[:-9], "cannot read train-images-idx3-ubyte and train-labels-idx1-ubyte"),
    "text": (FILES[0], b"<html>404 Not Found</html>", "cannot read train-images"),
    "empty": (FILES[3], b"", "cannot read t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"),
    "labels short": (FILES[1], idx(LABELS[:50]), "expected as many images as labels"),
    "no class": (FILES[1], idx(LABELS + 5), "expected labels 0 to 9"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_told_in_one_line(tmp_path, kind):
    name, content, told = BROKEN[kind]
    fashion_files(tmp_path / "root", packed=False)
    (tmp_path / "root" / name).write_bytes(content)
    data = FashionDataModule(str(tmp_path / "root"))
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    assert told in str(caught.value) and str(caught.value).startswith("data.root: ")
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_told(tmp_path):
    fashion_files(tmp_path / "root")
    path = tmp_path / "root" / f"{FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read train-images"):
        FashionDataModule(str(tmp_path / "root")).setup("fit")


def test_more_training_images_than_there_are_are_refused(tmp_path):
    fashion_files(tmp_path / "root")
    with pytest.raises(UserError, match=r"at most the 50 training images that there are, got 51"):
        FashionDataModule(str(tmp_path / "root"), train_samples=51).setup("fit")
    data = FashionDataModule(str(tmp_path / "root"), train_samples=50)
    data.setup("fit")
    assert len(data.labels("train")) == 50


def test_the_real_data_set():
    if folder_of(DEBIAN) is None:
        assert os.environ.get("CI") != "true", "CI installs the Debian package dataset-fashion-mnist"
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    data = FashionDataModule()
    data.setup("fit")
    counts = {split: np.bincount(data.labels(split)).tolist() for split in ("train", "val", "test")}
    assert counts == {"train": [5400] * 10, "val": [600] * 10, "test": [1000] * 10}
    # The first of the official training images is an ankle boot: its mean level is 97.3 of 255.
    first = next(split for split in ("train", "val") if 0 in data.rows[split][:1])
    assert data.class_name(int(data.labels(first)[0])) == "Ankle boot"
    small = FashionDataModule(image_size=28)
    small.setup("fit")
    assert float(small.picture(first, 0).double().mean()) == pytest.approx(97.3, abs=0.05)
