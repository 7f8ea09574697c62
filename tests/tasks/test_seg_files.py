"""Cityscapes and ADE20K in their layouts on disk: what is read, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from seg_trees import ADE_IDS, CITYSCAPES_IDS, ODD_SIZE, ade20k_tree, cityscapes_tree, save

from tasks.errors import UserError
from tasks.segmentation.ade20k import ADE20KDataModule
from tasks.segmentation.check import cityscapes
from tasks.segmentation.cityscapes import CityscapesDataModule
from tasks.segmentation.labels import CITYSCAPES, IGNORE, ade20k
from tasks.segmentation.masks import BadMask, read_mask
from tasks.segmentation.pairs import images_to_predict

# Of the data set's own table, raw ids 0 to 33.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18]


@pytest.fixture
def streets(tmp_path):
    return cityscapes_tree(tmp_path / "cityscapes", odd=True)


@pytest.fixture
def places(tmp_path):
    return ade20k_tree(tmp_path / "ade")


def data_of(root, kind=CityscapesDataModule, **options):
    return kind(str(root), **{"crop_size": (64, 64), "scale": (144, 96), "num_workers": 0, **options})


def mask_files(root):
    return sorted(root.glob("gtFine/val/*/*_labelIds.png"))


def test_cityscapes_ids_follow_its_table(tmp_path):
    save(tmp_path / "m.png", np.array([[*range(34), 255]], np.uint8))
    assert read_mask(tmp_path / "m.png", CITYSCAPES).tolist() == [[*TRAIN_IDS, 255]]


def test_ade_ids_start_at_one(tmp_path):
    save(tmp_path / "m.png", np.arange(151, dtype=np.uint8)[None])
    assert read_mask(tmp_path / "m.png", ade20k()).tolist() == [[255, *range(150)]]


def test_palette_masks_are_read_by_index(tmp_path):
    image = Image.fromarray(np.array([[7, 26]], np.uint8))
    image.putpalette([0, 0, 0] * 256)
    image.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as written:
        assert written.mode == "P"
    assert read_mask(tmp_path / "m.png", CITYSCAPES).tolist() == [[0, 13]]


def test_pairs_hold_the_pixels_on_disk(streets):
    data = data_of(streets)
    data.setup("validate")
    image, mask = data.examples("val")[0]
    file = streets / "leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png"
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
    ids = np.asarray(Image.open(mask_files(streets)[0]))
    assert np.array_equal(mask.numpy(), np.array(TRAIN_IDS)[ids])
    assert set(np.unique(ids)) <= {*CITYSCAPES_IDS, 4}
    assert data.sample_name("test", 0) == "frankfurt/frankfurt_000000_000019"
    assert data.class_name(13) == "car"


def test_evaluation_keeps_each_size(streets):
    data = data_of(streets, batch_size=2)
    data.setup("validate")
    images, masks, indices = next(iter(data.val_dataloader()))
    assert [tuple(i.shape) for i in images] == [(3, 96, 144), (3, *ODD_SIZE)]
    assert [tuple(m.shape) for m in masks] == [(96, 144), ODD_SIZE]
    images, masks, _ = data.on_after_batch_transfer([images, masks, indices], 0)
    byte, level = data.examples("val")[1][0][:, 5, 7], images[1][:, 5, 7]
    expected = (byte.double() / 255 - torch.tensor(data.mean).double()) / torch.tensor(data.std).double()
    # float32 of values up to 3.
    torch.testing.assert_close(level.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(data.as_bytes(images[1]), data.examples("val")[1][0])
    assert masks[1].dtype == torch.int64


def test_training_batches_are_crops_and_the_same_for_the_same_key(places):
    data = data_of(places, ADE20KDataModule, batch_size=3)
    data.setup("fit")
    first, again = (next(iter(data.train_dataloader())) for _ in range(2))
    assert first[0].shape == (3, 3, 64, 64) and first[0].dtype == torch.uint8
    assert first[1].shape == (3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    known = {number - 1 for number in ADE_IDS} | {IGNORE}
    assert set(first[1].unique().tolist()) <= known
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first[0])


def test_ade_names_come_from_its_table(places):
    assert data_of(places, ADE20KDataModule).class_name(149) == "thing 150"
    (places / "objectInfo150.txt").unlink()
    assert data_of(places, ADE20KDataModule).class_name(149) == "class 150"


def test_ade_names_that_several_classes_have_are_told_apart(places):
    table = places / "objectInfo150.txt"
    table.write_text(table.read_text().replace("thing 131,", "screen,").replace("thing 142,", "screen,"))
    data = data_of(places, ADE20KDataModule)
    assert (data.class_name(130), data.class_name(141)) == ("screen (131)", "screen (142)")


def test_instance_ids_have_sixteen_bits(streets):
    data = data_of(streets)
    ids = data.instance_ids("val", 0, data.examples("val")[0][1].shape)
    labels = np.asarray(Image.open(mask_files(streets)[0]))
    assert ids.max() >= 24_000
    assert np.array_equal(np.where(ids >= 1000, ids // 1000, ids), labels)


def test_instance_ids_are_there_for_all_images_or_for_none(streets):
    first, *_ = sorted((streets / "gtFine/val").glob("*/*_instanceIds.png"))
    first.unlink()
    for stage in ("fit", "test"):
        with pytest.raises(UserError, match="expected instance ids for every image or for none, got"):
            data_of(streets).setup(stage)
    data_of(streets).setup("validate")
    for path in (streets / "gtFine/val").glob("*/*_instanceIds.png"):
        path.unlink()
    data = data_of(streets)
    data.setup("test")
    assert data.instance_ids("val", 0, torch.Size([96, 144])) is None


def test_wrong_instance_ids_are_told_in_one_line(streets):
    path = sorted((streets / "gtFine/val").glob("*/*_instanceIds.png"))[0]
    data = data_of(streets)
    size = data.examples("val")[0][1].shape
    save(path, np.asarray(Image.open(path))[:-1])
    with pytest.raises(BadMask, match=r"instanceIds.png: expected .* got"):
        data.instance_ids("val", 0, size)
    path.write_bytes(b"no image")
    with pytest.raises(BadMask, match=r"instanceIds\.png: expected an image of instance ids, no image"):
        data.instance_ids("val", 0, size)


def test_an_image_is_laid_on_its_mask_as_stored(places):
    """A camera's note of its orientation does not turn the mask, and so not the image."""
    layout = data_of(places, ADE20KDataModule).layout("val")
    image = sorted(layout.images.glob("*.jpg"))[0]
    pixels = Image.open(image)
    pixels.load()
    noted = Image.Exif()
    noted[0x0112] = 3  # turned by 180°
    pixels.save(image, exif=noted, quality=95)
    data = data_of(places, ADE20KDataModule)
    loaded, _ = data.examples("val")[0]
    stored = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)
    # JPEG decoders differ by a few levels; turned, the difference would be that of two scenes.
    assert (loaded.float() - stored.float()).abs().mean() < 2


def test_names_of_predicted_images_stay_apart(tmp_path):
    for name in ("a.bmp", "a.png", "a.bmp.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert len({pair.name for pair in images_to_predict(tmp_path)}) == 3


def test_images_without_masks_can_be_predicted(streets):
    data = data_of(streets, predict_images=str(streets / "leftImg8bit/test"))
    data.setup("predict")
    images, masks, _ = next(iter(data.predict_dataloader()))
    assert data.sample_name("predict", 0) == "berlin/berlin_000000_000019_leftImg8bit"
    assert images[0].shape == (3, *ODD_SIZE) and (masks[0] == IGNORE).all()


def wrong_size(root):
    path = mask_files(root)[0]
    save(path, np.asarray(Image.open(path))[:-1])


def unknown_ids(root):
    path = mask_files(root)[0]
    ids = np.array(Image.open(path))
    ids[0, :3] = 40, 41, 40
    save(path, ids)


def in_colour(root):
    save(mask_files(root)[0], np.zeros((96, 144, 3), np.uint8))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (wrong_size, r"labelIds.png: expected 144 × 96 .* got 144 × 95"),
        (unknown_ids, r"expected 0–33, 255 as ids, got 40, 41 at 3 of 13824 pixels"),
        (in_colour, r"expected one channel of ids, got an image of mode RGB"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_mask_stops_the_run_in_one_line(streets, break_it, message, workers):
    break_it(streets)
    data = data_of(streets, num_workers=workers, batch_size=1)
    data.setup("validate")
    with pytest.raises(BadMask, match=message) as caught:
        next(iter(data.val_dataloader()))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(mask_files(streets)[0]))


def remove_masks(root):
    for path in (root / "gtFine/train").glob("*/*_labelIds.png"):
        path.unlink()


def remove_masks_folder(root):
    (root / "gtFine/train").rename(root / "elsewhere")


def remove_images(root):
    for path in (root / "leftImg8bit/train").glob("*/*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            remove_masks,
            r"expected a mask .*_labelIds.png for every image, got none for 3 of 3: .*aachen_",
        ),
        (remove_masks_folder, r"expected a folder .*gtFine/train, which does not exist"),
        (remove_images, r"leftImg8bit/train: expected images \*_leftImg8bit.png, got none"),
    ],
)
def test_a_layout_with_holes_is_refused_before_training(streets, break_it, message):
    break_it(streets)
    with pytest.raises(UserError, match=message):
        data_of(streets).setup("fit")
    assert cityscapes(streets).problems


def test_a_root_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.root: expected a folder"):
        data_of(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 4)}, "data.crop_size: expected two positive numbers"),
        ({"scale": (4, -1)}, "data.scale: expected two positive numbers"),
        ({"scale_factors": (2.0, 0.5)}, "data.scale_factors: expected two positive numbers in order"),
        ({"max_class_ratio": 0.0}, r"data.max_class_ratio: expected a number in \(0, 1\]"),
    ],
)
def test_options_out_of_range(streets, options, message):
    with pytest.raises(ValueError, match=message):
        data_of(streets, **options)


def test_an_unreadable_file_of_either_kind_is_replaced_in_training(streets, capsys):
    sorted(streets.glob("gtFine/train/*/*_labelIds.png"))[0].write_bytes(b"no image")
    data = data_of(streets, max_unreadable=0.5)
    data.setup("fit")
    _, _, index = data.train_dataloader().dataset[0, 0]
    assert index in (1, 2)
    assert data.unreadable_summary().startswith("1 unreadable image")
    assert "aachen_000000_000019_gtFine_labelIds.png" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_ends_an_evaluation(streets, workers):
    mask_files(streets)[1].write_bytes(b"no image")
    data = data_of(streets, max_unreadable=0.9, num_workers=workers, batch_size=1)
    data.setup("test")
    batches = iter(data.test_dataloader())
    assert next(batches)[2].tolist() == [0]
    told = r"^unreadable image in test: .*lindau_000001_000019_gtFine_labelIds.png \(no image of a known"
    with pytest.raises(UserError, match=told) as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_unreadable_images_to_predict_are_left_out(streets, tmp_path, capsys):
    folder = tmp_path / "own"
    for name in ("a.png", "a.bmp", "b/c.png"):
        save(folder / name, np.zeros((8, 9, 3), np.uint8))
    (folder / "broken.jpg").write_bytes(b"no image")
    data = data_of(streets, predict_images=str(folder))
    data.setup("predict")
    assert len(data.examples("predict")) == 3
    assert [data.sample_name("predict", i) for i in range(3)] == ["a.bmp", "a.png", "b/c"]
    told = f"unreadable, left out: {folder / 'broken.jpg'}: no image of a known format\n"
    assert capsys.readouterr().err == told
    for path in ("own/broken.jpg", "nowhere"):
        with pytest.raises(UserError, match="--images: expected an image"):
            data_of(streets, predict_images=str(tmp_path / path)).setup("predict")


def test_predicting_own_images_needs_no_data_set(tmp_path):
    save(tmp_path / "a.png", np.zeros((8, 9, 3), np.uint8))
    data = data_of(tmp_path / "nowhere", ADE20KDataModule, predict_images=str(tmp_path / "a.png"))
    data.setup("predict")
    assert data.num_classes == 150 and data.sample_name("predict", 0) == "a"
