"""Digits with styles, fewer training images, and the control: which images, which labels, which styles."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tasks.classification.control import DigitsControlDataModule
from tasks.classification.digits import DigitsDataModule
from tasks.classification.styles import STYLES
from tasks.data import SeededDataset
from tasks.errors import UserError
from tasks.samplers import EpochSampler
from tasks.splits import stratified_order

EVERY = list(STYLES)


def ready(data):
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def styled():
    return ready(DigitsDataModule(styles=EVERY, image_size=16))


@pytest.fixture(scope="module")
def control():
    return ready(DigitsControlDataModule())


# --- styles


def test_without_styles_digits_are_white_on_black():
    data = ready(DigitsDataModule(styles=[], image_size=8))
    image, label = data.examples("val")[4]
    assert label == data.digits[data.rows["val"][4]]
    levels = data.images[data.rows["val"][4]].expand(3, -1, -1)
    torch.testing.assert_close(image * 0.25 + 0.5, levels, atol=1e-6, rtol=0)  # float32, levels up to 1
    assert data.style_of("val", 4) == {}


def test_an_image_is_what_its_styles_make_of_it(styled):
    """By the reported values: contrast and brightness of the image that the other four make."""
    others = ready(DigitsDataModule(styles=["polarity", "colour", "blur", "noise"], image_size=16))
    for index in (0, 11):
        value = styled.style_of("test", index)
        assert {name: value[name] for name in others.style_of("test", index)} == others.style_of(
            "test", index
        )
        seen, before = (data.examples("test")[index][0].double() * 0.25 + 0.5 for data in (styled, others))
        expected = value["contrast"] * (before - before.mean()) + before.mean() + value["brightness"]
        # Float32 on levels up to 10.
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_a_style_stays_through_the_epochs(styled):
    """Digits of one ink and one paper, wherever augmentation puts them: the two levels stay."""
    data = ready(DigitsDataModule(styles=["colour", "polarity"], image_size=16))
    dataset = SeededDataset(data.examples("train"), 0)
    images = [dataset[epoch, 5][0] * 0.25 + 0.5 for epoch in range(4)]
    assert not torch.equal(images[0], images[1])  # augmented anew
    value = data.style_of("train", 5)
    paper = torch.tensor(value["colour"][:3] if value["polarity"] else value["colour"][3:])
    for image in images:
        # The lower left corner of a digit is paper, and so is what augmentation brings in from outside.
        torch.testing.assert_close(image[:, -1, 0], paper, atol=1e-6, rtol=0)
    assert styled.style_of("train", 5)["colour"] == value["colour"]


def test_images_do_not_depend_on_workers_or_on_the_others(styled):
    dataset = SeededDataset(styled.examples("train"), seed=0)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(60, seed=0)
        sampler.set_epoch(1)
        loader = DataLoader(dataset=dataset, batch_size=20, sampler=sampler, num_workers=workers)
        batches.append([image for images, *_ in loader for image in images])
    assert len(batches[0]) == 60 and all(map(torch.equal, *batches))
    # Of two processes, each shows the very images of its share.
    share = EpochSampler(60, seed=0, rank=1, world_size=2)
    share.set_epoch(1)
    assert all(
        torch.equal(dataset[key][0], image) for key, image in zip(share, batches[0][1::2], strict=True)
    )


def test_held_back_styles_are_those_of_the_test_images_alone(styled):
    held_back = ["polarity", "colour"]
    data = ready(DigitsDataModule(styles=EVERY, held_back=held_back, image_size=16))
    kept = [name for name in EVERY if name not in held_back]
    without = ready(DigitsDataModule(styles=kept, image_size=16))
    for split in ("train", "val"):
        for index in range(40):
            assert list(data.style_of(split, index)) == kept
            shown, expected = (
                SeededDataset(module.examples(split), 0)[2, index][0] for module in (data, without)
            )
            assert torch.equal(shown, expected)
            # No colour: what is grey stays grey but for noise, which differs between channels.
    grey = ready(DigitsDataModule(styles=["contrast", "colour"], held_back=["colour"], image_size=16))
    for split, is_grey in (("train", True), ("val", True), ("test", False), ("predict", False)):
        images = [grey.examples(split)[index][0] for index in range(40)]
        assert all(torch.equal(image[0], image[1]) == is_grey for image in images)
    for index in range(40):
        assert data.style_of("test", index) == styled.style_of("test", index)
        assert torch.equal(data.examples("test")[index][0], styled.examples("test")[index][0])


def test_pictures_show_the_styles(styled):
    seen = (styled.examples("test")[3][0] * 0.25 + 0.5).clamp(0, 1)
    # Rounded to bytes: half a level.
    torch.testing.assert_close(styled.picture("test", 3) / 255, seen, atol=0.5 / 255 + 1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"styles": ["blur"], "blur": 0.5}, "data.blur: expected none beside data.styles"),
        ({"styles": [], "contrast": 0.5}, "data.contrast: expected none beside data.styles"),
        ({"held_back": ["blur"]}, "data.held_back: expected some of data.styles (none), got blur"),
        ({"train_samples": 9}, "an image for each of 10 classes or more, got 9"),
        ({"image_size": 7}, "data.image_size: expected at least 8, got 7"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValueError) as caught:
        DigitsDataModule(**options)
    assert told in str(caught.value) and "\n" not in str(caught.value)


# --- fewer training images


def test_every_beginning_of_the_order_is_stratified():
    labels = np.repeat([0, 1, 2], [50, 30, 20])[np.random.default_rng(3).permutation(100)]
    order = stratified_order(labels)
    assert sorted(order) == list(range(100)) and np.array_equal(order, stratified_order(labels))
    assert not np.array_equal(order, stratified_order(labels, seed=1))
    assert sorted(labels[order[:3]]) == [0, 1, 2]
    for n in range(1, 101):
        counts = np.bincount(labels[order[:n]], minlength=3)
        # A class is ahead of its share by one image at most; all that are ahead, the others are behind.
        assert np.abs(counts - n * np.array([0.5, 0.3, 0.2])).max() <= 2


@pytest.mark.parametrize("kind", [DigitsDataModule, DigitsControlDataModule])
def test_fewer_training_images_are_the_same_for_all_seeds(kind):
    rows = [ready(kind(train_samples=n, seed=seed)).rows for n, seed in ((100, 0), (100, 7), (200, 0))]
    assert np.array_equal(rows[0]["train"], rows[1]["train"]) and len(rows[0]["train"]) == 100
    assert set(rows[0]["train"]) < set(rows[2]["train"])  # more are those and others
    whole = ready(kind())
    assert set(rows[0]["train"]) < set(whole.rows["train"]) and list(rows[0]["train"]) == sorted(
        rows[0]["train"]
    )
    assert np.array_equal(rows[0]["val"], whole.rows["val"])
    share = np.bincount(whole.labels("train")) / len(whole.labels("train"))
    few = ready(kind(train_samples=100))
    assert np.abs(np.bincount(few.labels("train")) - 100 * share).max() <= 2
    with pytest.raises(UserError, match=r"at most the 1,168 training images that there are, got 1,169"):
        kind(train_samples=1169).setup("fit")


def test_fewer_images_without_styles_as_well():
    few = ready(DigitsDataModule(train_samples=30, image_size=16))
    assert len(few.examples("train")) == len(few.labels("train")) == 30
    whole = ready(DigitsDataModule(image_size=16))
    index = whole.rows["train"].tolist().index(few.rows["train"][4])
    for data, at in ((few, 4), (whole, index)):
        torch.manual_seed(5)
        image, label = data.examples("train")[at]
        assert label == data.digits[few.rows["train"][4]]
        if data is few:
            expected = image
    assert torch.equal(image, expected)


# --- the control


def levels_of(image):
    """(mean, largest and smallest level) of an image as the network sees it, normalisation undone."""
    image = image.double() * 0.25 + 0.5
    return float(image.mean()), float(image.max()), float(image.min())


def test_the_label_is_the_digit_or_the_contrast(control):
    from sklearn.datasets import load_digits

    digits = load_digits().target
    assert control.num_classes == 14
    assert [control.class_name(n) for n in (0, 9, 10, 13)] == [
        "digit 0",
        "digit 9",
        "contrast 1",
        "contrast 4",
    ]
    for split in ("train", "val", "test"):
        for index, label in enumerate(control.labels(split)):
            style, digit = control.style_of(split, index), digits[control.rows[split][index]]
            if style["marked"]:
                # Levels are a deviation of the logarithm apart, and each image within 0.15 of its own.
                place = math.log(style["contrast"]) / 0.8 + 1.5
                assert label == 10 + round(place) and abs(place - round(place)) <= 0.15 + 1e-9
            else:
                assert label == digit
        labels = control.labels(split)
        assert abs((labels < 10).sum() - (labels >= 10).sum()) <= 10  # one a digit


def test_halves_and_levels_do_not_tell_the_digit(control):
    from sklearn.datasets import load_digits

    digits = load_digits().target
    for split in ("train", "val", "test"):
        rows, labels = control.rows[split], control.labels(split)
        table = np.array([np.bincount(labels[digits[rows] == d], minlength=14)[10:] for d in range(10)])
        assert (table.max(1) - table.min(1)).max() <= 1  # each digit has every level as often, but for one
        assert np.bincount(labels, minlength=14)[10:].std() < 2
        read = np.array([(labels[digits[rows] == d] < 10).mean() for d in range(10)])
        assert np.abs(read - 0.5).max() < 0.03


def test_the_mark_and_what_is_seen_of_the_contrast(control):
    plain = ready(DigitsDataModule(styles=[]))
    for index in range(60):
        image, label = control.examples("val")[index]
        style = control.style_of("val", index)
        before = plain.examples("val")[index][0].double() * 0.25 + 0.5
        if style["marked"]:
            before[:, 1:6, 1:6] = 1.0
        seen = image.double() * 0.25 + 0.5
        expected = style["contrast"] * (before - before.mean()) + before.mean() + style["brightness"]
        # Float32 on levels up to 10.
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
        if label >= 10:
            # The mark is ink: it stands out from the paper by the contrast itself, whatever the brightness.
            assert float(seen[0, 3, 3] - seen[0, 31, 0]) == pytest.approx(style["contrast"], rel=1e-4)


def test_the_mark_stays_where_it_is_in_training(control):
    dataset = SeededDataset(control.examples("train"), 0)
    index = int(np.flatnonzero(control.labels("train") >= 10)[0])
    contrast = control.style_of("train", index)["contrast"]
    images = [dataset[epoch, index][0].double() * 0.25 for epoch in range(3)]
    assert not torch.equal(images[0], images[1])
    for image in images:
        square = image[:, 1:6, 1:6]
        assert float(square.max() - square.min()) < 1e-6
        assert float(square.mean() - image.min()) == pytest.approx(contrast, rel=1e-4)


def test_contrast_and_brightness_of_the_digits_half_are_those_of_the_styles(control):
    data = ready(DigitsDataModule(styles=["contrast", "brightness"]))
    for index, label in enumerate(control.labels("test")):
        free, own = data.style_of("test", index), control.style_of("test", index)
        assert own["brightness"] == free["brightness"]
        assert label >= 10 or own["contrast"] == free["contrast"]


def test_labels_are_the_same_for_all_seeds_and_nuisance_is_not(control):
    other = ready(DigitsControlDataModule(seed=1))
    for split in ("train", "val", "test"):
        assert np.array_equal(other.labels(split), control.labels(split))
    for index in range(20):
        assert other.style_of("val", index)["contrast"] != control.style_of("val", index)["contrast"]
        assert other.style_of("val", index)["marked"] == control.style_of("val", index)["marked"]
    again = ready(DigitsControlDataModule())
    assert torch.equal(again.examples("test")[8][0], control.examples("test")[8][0])
