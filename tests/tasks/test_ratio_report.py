"""What a run's report says about its ratios: samples at both ends, classes over epochs, a true sentence."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.classification.digits import DigitsDataModule
from tasks.classification.report import training_pictures
from tasks.ratios.by_sample import SampleRatios, write_by_sample
from tasks.ratios.dying import Dying
from tasks.ratios.run_figures import extremes, shown_classes, varying
from tasks.ratios.survey import LayerRatios
from tasks.ratios.table import (
    ClassRatios,
    Epoch,
    append_by_class,
    append_dying,
    append_ratios,
    read_by_class,
    read_ratios,
)
from tasks.ratios.worth import Way, Worth, write_worth
from tasks.report.facts import RunFacts
from tasks.report.page import Section, write_page
from tasks.report.ratio_section import in_words, ratio_sections
from tasks.report.run import write_report

KEYS = ("in", "ln", "bn")
COLUMNS = [(layer, key) for layer in ("first", "second") for key in KEYS]


def samples(size=40, std=0.1):
    """λ_bn of the second layer rises with the place, in a shuffled order; the first layer hardly moves."""
    generator = np.random.default_rng(0)
    rise = np.linspace(-1, 1, size)[generator.permutation(size)]
    vectors = np.full((size, 6), 1 / 3) + 1e-4 * generator.normal(size=(size, 6))
    vectors[:, 3] -= 0.5 * std * rise
    vectors[:, 4] -= 0.5 * std * rise
    vectors[:, 5] += std * rise
    labels = np.arange(size) % 3
    return SampleRatios(1, 5, COLUMNS, vectors.astype(np.float32), np.arange(100, 100 + size), labels)


def layer(name, std, spread=0.0, between=float("nan"), kind="en", by_class=None):
    mean = np.array([0.2, 0.3, 0.5])
    counts = None if by_class is None else np.full(len(by_class), 9)
    std = np.array([std / 2, std / 2, std])
    return LayerRatios(name, kind, "both", KEYS, 40, mean, std, mean, 1.0, spread, between, by_class, counts)


class Data:
    """A data module whose pictures say which sample they are of."""

    def __init__(self):
        self.asked = []

    def picture(self, split, index):
        self.asked.append((split, index))
        return torch.full((3, 8, 8), index, dtype=torch.uint8)

    def sample_name(self, split, index):
        return f"{split}-{index}"

    def class_name(self, index):
        return f"class <{index}>"


def run_of(folder, std=0.1, kind="en"):
    """The files of a run of two epochs."""
    (folder / "ratios").mkdir()
    for epoch in range(2):
        by_class = np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.4 - 0.2 * epoch, 0.3, 0.3 + 0.2 * epoch]])
        layers = [
            layer("first", 0.002, 0.0001, 0.5, kind, by_class),
            layer("second", std, 0.01, 0.25, kind, by_class),
        ]
        when = Epoch(epoch, 3 * epoch + 2, "val", layers)
        append_ratios(folder, when)
        append_by_class(folder, when, ["zero", "one", "two"])
    write_by_sample(folder, samples(std=std))


def page_of(folder, data=None):
    write_page(folder / "page.html", "x", ratio_sections(folder, data))
    text = (folder / "page.html").read_text()
    assert "could not be drawn" not in text
    return text


def test_the_ends_are_those_of_the_ratio_that_varies_most():
    found = samples()
    ends = extremes(found)
    assert (ends.layer, ends.normalizer) == ("second", "bn")
    order = np.argsort(found.vectors[:, 5])
    assert ends.lowest == order[:8].tolist() and ends.highest == order[-8:].tolist()
    # A ramp from −0.1 to 0.1: its deviation is that of 40 even steps.
    assert ends.std == pytest.approx(np.linspace(-0.1, 0.1, 40).std(), rel=0.01)
    few = replace(found, vectors=found.vectors[:5], indices=found.indices[:5])
    assert not {*extremes(few).lowest} & {*extremes(few).highest}
    assert extremes(samples(std=0.005)) is None


def test_of_two_normalizers_that_vary_alike_bn_is_shown():
    value = np.linspace(0.2, 0.8, 10)
    vectors = np.stack([value, 1 - value], 1).astype(np.float32)
    found = SampleRatios(0, 0, [("a", "in"), ("a", "bn")], vectors, np.arange(10), np.zeros(10, int))
    assert extremes(found).normalizer == "bn"


def test_the_page_shows_the_samples_with_their_ratios(tmp_path):
    run_of(tmp_path)
    data, found = Data(), samples()
    text = page_of(tmp_path, data)
    order = np.argsort(found.vectors[:, 5])
    places = [*order[:8], *order[-8:]]
    assert data.asked == [("val", int(found.indices[place])) for place in places]
    captions = [f"<figcaption>{found.vectors[place, 5]:.3f}</figcaption>" for place in places]
    positions = [text.index(caption) for caption in captions]
    assert positions == sorted(positions)
    assert "Which samples take least and most of bn" in text and "λ moves in no layer" not in text
    assert "class &lt;0&gt;" in text and "class <0>" not in text
    assert f"sample {found.indices[order[0]]} ({found.vectors[order[0], 5]:.3f})" in page_of(tmp_path, None)


def test_a_data_module_without_pictures_shows_what_the_network_sees(tmp_path):
    class Plain:
        seed = 0

        def examples(self, split):
            return {100 + index: (torch.full((3, 8, 8), index / 40), 0) for index in range(40)}

        def as_bytes(self, image):
            return (255 * image).to(torch.uint8)

        def sample_name(self, split, index):
            return f"{split}-{index}"

        def class_name(self, index):
            return str(index)

    run_of(tmp_path)
    assert page_of(tmp_path, Plain()).count("<img") == 16


def test_where_nothing_moves_the_page_says_so(tmp_path):
    run_of(tmp_path, std=0.002)
    data = Data()
    text = page_of(tmp_path, data)
    assert "λ moves in no layer" in text and data.asked == [] and "<img" not in text
    assert "λ is the same for all samples in each of 2 layers" in text


def test_the_sentence_is_that_of_the_layers():
    moving = [layer("a", 0.02, 0.001, 0.5), layer("b", 0.2, 0.05, 0.3), layer("c", 0.001, 0.0, 0.9)]
    told = in_words(moving)
    assert "in 2 of 3 layers, most in b (standard deviation 0.2)" in told
    assert "spread is 0.017 as a mean" in told and "40 % lies between the classes" in told
    assert "in all 2 layers" in in_words(moving[:2])
    still = in_words(moving[2:])
    assert "same for all samples in each of 1 layers" in still and "at most 0.001" in still


def test_what_the_choice_is_worth_is_said_where_it_was_measured_after_the_run(tmp_path):
    run_of(tmp_path)
    assert f"is told by python -m tasks.ratios --ckpt {tmp_path}" in page_of(tmp_path)
    worth = Worth("val", 270, "top-1", 0.9, {"shuffled": Way(0.8, 0.01, 0.85)})
    table = tmp_path / "ratios" / "shuffle.csv"
    write_worth(table, worth)
    assert "Shuffling λ between samples costs 10 points" in page_of(tmp_path)
    before = (tmp_path / "ratios.csv").stat().st_mtime - 60
    os.utime(table, (before, before))  # the run went on since
    assert "costs 10 points" not in page_of(tmp_path) and "is told by" in page_of(tmp_path)


def test_layers_with_one_mixture_for_all_samples_show_no_samples(tmp_path):
    run_of(tmp_path, kind="sn")
    text = page_of(tmp_path, data := Data())
    assert "SN and SSN choose by layer, not by sample." in text and data.asked == []
    assert "python -m tasks.ratios" not in text


def test_classes_are_compared_with_their_mean():
    means = np.full((2, 6, 3), 1 / 3)
    means[1, 5] = [0.2, 0.3, 0.7]  # bn of the second layer after the last epoch
    found = varying(ClassRatios([0, 1], COLUMNS, ["zero", "one", "two"], means))
    assert (found.normalizer, found.layers, found.best) == ("bn", ["first", "second"], 1)
    assert found.difference[1, 1] == pytest.approx([-0.2, -0.1, 0.3])
    assert np.abs(found.difference[0]).max() < 1e-12
    assert varying(ClassRatios([0], COLUMNS, ["zero"], means[:1, :, :1])) is None
    many = np.zeros((2, 3, 100))
    many[1, 2, [7, 50]] = 1, -2
    assert {7, 50} <= {*shown_classes(many).tolist()} and len(shown_classes(many)) == 30


def test_the_classes_of_all_epochs_are_drawn(tmp_path):
    run_of(tmp_path)
    text = page_of(tmp_path)
    assert "Change of the ratio of" in text and "since epoch 1" in text and ">two<" in text


def test_layers_that_die_have_their_own_section(tmp_path):
    assert ratio_sections(tmp_path) == []
    append_dying(tmp_path, [Dying(3, 11, "layer1.bn<1>", 1.25, 0.001)])
    assert [section.title for section in ratio_sections(tmp_path)] == ["Layers that die"]
    text = page_of(tmp_path)
    assert "layer1.bn&lt;1&gt; from 1.25 to 0.001" in text and "lower model.lr" in text
    assert '<td class="number">4</td>' in text, "epochs count from 1 for people"


def test_a_strip_of_training_images_comes_first(tmp_path):
    data = DigitsDataModule(image_size=16)
    data.setup("fit")
    sections = [Section("Own", lambda: "own"), training_pictures(data)]
    write_report(tmp_path, RunFacts("classification", "x"), sections)
    text = (tmp_path / "report.html").read_text()
    titles = [text.index(f"<h2>{title}</h2>") for title in ("Training data", "Outcome", "Curves", "Own")]
    assert titles == sorted(titles)
    strip = text[titles[0] : titles[1]]
    assert strip.count("<img") == 8
    labels = data.labels("train")
    for digit in (0, 9):  # the first of each class that is shown, of which 0 and 9 are
        first = int(np.flatnonzero(labels == digit)[0])
        assert f'alt="training sample {data.sample_name("train", first)}: {data.class_name(digit)}"' in strip


def test_two_classes_fill_the_strip_too(tmp_path):
    class Two(Data):
        def labels(self, split):
            return np.array([1, 0, 0, 1, 0, 0, 0, 1, 1, 1])

    text = training_pictures(data := Two()).build()
    assert text.count("<img") == 8
    assert data.asked == [("train", index) for index in (1, 2, 4, 5, 0, 3, 7, 8)]


def test_ratios_that_are_no_numbers_are_read(tmp_path):
    run_of(tmp_path)
    by_class = np.full((3, 3), np.nan)
    lost = replace(layer("second", np.nan, np.nan, by_class=by_class), mean=np.full(3, np.nan))
    when = Epoch(2, 8, "val", [layer("first", 0.002, by_class=np.full((3, 3), 1 / 3)), lost])
    append_ratios(tmp_path, when)
    append_by_class(tmp_path, when, ["zero", "one", "two"])
    first, second = read_ratios(tmp_path)[-1].layers
    np.testing.assert_allclose(first.mean, [0.2, 0.3, 0.5])
    assert np.isnan([*second.mean, *second.std, second.spread]).all()
    means = read_by_class(tmp_path).means
    np.testing.assert_allclose(means[-1, :3], 1 / 3, atol=1e-6)
    assert np.isnan(means[-1, 3:]).all() and not np.isnan(means[:-1]).any()


def test_a_run_that_diverged_says_from_which_epoch_on(tmp_path):
    run_of(tmp_path)
    for epoch in (2, 3):
        by_class = np.full((3, 3), np.nan)
        lost = replace(layer("second", np.nan, np.nan, by_class=by_class), mean=np.full(3, np.nan))
        when = Epoch(
            epoch, 3 * epoch + 2, "val", [layer("first", 0.002, by_class=np.full((3, 3), 1 / 3)), lost]
        )
        append_ratios(tmp_path, when)
        append_by_class(tmp_path, when, ["zero", "one", "two"])
    text = page_of(tmp_path, data := Data())
    assert "From epoch 3 on λ was no number in 1 of 2 layers (second): the training diverged." in text
    assert "λ nan" not in text and "deviation nan" not in text and data.asked == []
    assert "python -m tasks.ratios" not in text, "it would refuse this run"


def test_the_strip_names_the_styles_of_training_images():
    class Styled(Data):
        styles, held_back = ["contrast", "polarity", "blur", "noise"], ["blur"]

        def labels(self, split):
            return np.arange(8)

    assert "Each image under its own contrast, polarity and noise." in training_pictures(Styled()).build()
    plain = Styled()
    plain.styles = None
    assert "under its own" not in training_pictures(plain).build()
