"""What the choice per sample is worth: scores, a network whose choice is known to matter, the sentence."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, record_ratios
from tasks.data import BaseDataModule
from tasks.errors import UserError
from tasks.ratios.load import Trained
from tasks.ratios.scores import MeanIoU, TopOne
from tasks.ratios.shuffle import measure_worth
from tasks.ratios.survey import RatioSurvey
from tasks.ratios.worth import Way, Worth, read_worth, worth_in_words, worth_table, write_worth
from tasks.segmentation.inference import Inference
from tasks.segmentation.metrics import SegmentationScores

NAN = float("nan")


def test_top_one_and_its_error_are_those_of_the_paired_hits():
    score, generator = TopOne(), np.random.default_rng(0)
    labels = generator.integers(-1, 3, 40)
    predicted = {way: generator.integers(0, 3, 40) for way in ("own", "shuffled")}
    for way, values in predicted.items():
        for first in range(0, 40, 16):
            part = slice(first, first + 16)
            score.add(way, torch.from_numpy(values[part]), torch.from_numpy(labels[part]), first)
    known = labels >= 0
    hits = {way: (values == labels)[known] for way, values in predicted.items()}
    assert score.value("own") == pytest.approx(hits["own"].mean())
    difference = hits["own"].astype(float) - hits["shuffled"]
    # The standard error of a mean by its textbook formula.
    variance = ((difference - difference.mean()) ** 2).sum() / (known.sum() - 1)
    assert score.error("own", "shuffled") == pytest.approx((variance / known.sum()) ** 0.5)


def test_mean_iou_is_the_tasks_own_and_its_error_that_of_the_jackknife():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(4, (10, 6, 5), generator=generator)
    masks[:, 0] = 255
    found = {way: torch.randint(4, (10, 6, 5), generator=generator) for way in ("own", "shuffled")}
    score = MeanIoU(SimpleNamespace(scores=lambda: SegmentationScores(4)))
    for way, predicted in found.items():
        for place in range(10):
            score.add(way, predicted[place][None], masks[place][None], place)

    def iou(way, images):
        counted = SegmentationScores(4)
        counted.update(found[way][images], masks[images])
        return float(counted.compute()["miou"])

    assert score.value("own") == pytest.approx(iou("own", [*range(10)]))
    others = [[i for i in range(10) if i != left] for left in range(10)]
    parts = np.array([iou("own", some) - iou("shuffled", some) for some in others])
    assert score.error("own", "shuffled") == pytest.approx(np.sqrt(0.9 * ((parts - parts.mean()) ** 2).sum()))


class Chooser(nn.Module):
    """λ says whether an image is bright: its gate looks at the mean, and the logits at what comes out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(NORMS["en"](2, normalizers=("in", "bn"), reduction=2, hidden=4))
        gate = self.network[0].gate
        for parameter in (gate.conv.weight, gate.fc1.weight, gate.fc1.bias):
            nn.init.constant_(parameter, 0.5)
        # bn's row is the pooled input: λ_bn falls with its square.
        gate.fc2.weight.data = torch.tensor([[4.0], [-4.0]]).expand(2, 4).contiguous()
        gate.fc2.bias.data = torch.tensor([-12.0, 12.0])

    def forward(self, images):
        """Class 1 where the output is high, as it is by "bn" of a moderately bright image alone."""
        high = self.network(images).mean((1, 2, 3))
        return torch.stack([torch.full_like(high, 0.2), high], 1)


class Pixels(Chooser):
    """The same as a segmenter of whole images, whose windows are half an image."""

    inference = Inference(mode="slide", crop_size=(4, 2), stride=(4, 2), window_batch=1)

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(*self.network, Logits())


class Logits(nn.Module):
    """Class 1 where a pixel is high."""

    def forward(self, x):
        high = x.mean(1)
        return torch.stack([torch.full_like(high, 0.2), high], 1)


class Flat(BaseDataModule):
    """Images of one brightness each, with a little noise."""

    num_classes = 2

    def __init__(self, is_pixels=False, size=24):
        super().__init__(batch_size=5)
        generator = torch.Generator().manual_seed(2)
        levels = torch.linspace(0, 2, size)[torch.randperm(size, generator=generator)]
        self.images = levels.view(-1, 1, 1, 1) + 0.01 * torch.randn(size, 2, 4, 4, generator=generator)
        labels = (levels > 0.8).long()
        self.targets = labels.view(-1, 1, 1).expand(-1, 4, 4) if is_pixels else labels

    def examples(self, split):
        return [*zip(self.images, self.targets, strict=True)]

    def scores(self):
        return SegmentationScores(2)


def measured(model, data):
    model.eval()
    layer = model.network[0]
    survey = RatioSurvey({"0": layer}, 0)
    with record_ratios(layer) as ratios, torch.no_grad():
        layer(data.images)
    survey.update({"0": ratios[""]})
    trained = Trained("x", "classification", None, None, model, data, {})
    loader = data.val_dataloader()
    cpu = torch.device("cpu")
    return measure_worth(trained, "val", loader, cpu, survey.finish(), ratios[""].numpy()), ratios[""]


def by_hand(images, ratio):
    """Predictions by the definition: in of a flat image is noise about 0, bn in evaluation divides by 1."""
    noise = images - images.mean((2, 3), keepdim=True)
    normed = noise / (noise.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    rows = ratio.double().view(len(images), 2, 1, 1, 1)
    out = rows[:, 0] * normed.double() + rows[:, 1] * images.double() / (1 + 1e-5) ** 0.5
    return (out.mean((1, 2, 3)) > 0.2).long()


def test_scores_of_a_classifier_are_those_of_its_definition():
    model, data = Chooser(), Flat()
    worth, ratio = measured(model, data)
    labels = data.targets
    assert ratio[:, 1].std() > 0.3, "the choice differs between the samples"

    def score(rows):
        return float((by_hand(data.images, rows) == labels).double().mean())

    assert (worth.samples, worth.metric, worth.own) == (24, "top-1", score(ratio))
    assert worth.ways["mean"].value == score(ratio.mean(0).expand(24, 2))
    assert worth.ways["uniform"].value == score(torch.full((24, 2), 0.5))
    # The order is drawn, so its score is one of many: that of the order that the function draws.
    cycle = np.random.default_rng(0).permutation(24)
    source = np.empty_like(cycle)
    source[cycle] = np.roll(cycle, 1)
    assert worth.ways["shuffled"].value == score(ratio[source])
    kept = by_hand(data.images, ratio[source]) == by_hand(data.images, ratio)
    assert worth.ways["shuffled"].kept == pytest.approx(float(kept.double().mean()))
    assert 0 < worth.ways["shuffled"].kept < 1
    assert not model.network[0].gate._forward_hooks


def test_windows_of_an_image_take_the_mean_ratios_of_another_image():
    model, data = Pixels(), Flat(is_pixels=True)
    worth, _ = measured(model, data)
    halves = data.images.split(2, 3)
    ratios = []
    for half in halves:
        with record_ratios(model.network[0]) as found, torch.no_grad():
            model.network[0](half)
        ratios.append(found[""])

    def score(rows):
        predicted = torch.cat([pixels_by_hand(*pair) for pair in zip(halves, rows, strict=True)], 2)
        return iou(predicted, data.targets)

    cycle = np.random.default_rng(0).permutation(24)
    source = np.empty_like(cycle)
    source[cycle] = np.roll(cycle, 1)
    mean = (ratios[0] + ratios[1]) / 2
    assert (worth.samples, worth.metric) == (24, "mIoU")
    # A pixel at the threshold may fall on either side by rounding; one of 384 moves mIoU by less than 0.01.
    assert worth.own == pytest.approx(score(ratios), abs=0.01)
    assert worth.ways["uniform"].value == pytest.approx(score([torch.full((24, 2), 0.5)] * 2), abs=0.01)
    assert worth.ways["shuffled"].value == pytest.approx(score([mean[source]] * 2), abs=0.01)
    assert abs(worth.own - worth.ways["shuffled"].value) > 0.03 and worth.ways["shuffled"].error > 0


def pixels_by_hand(images, ratio):
    noise = images - images.mean((2, 3), keepdim=True)
    normed = noise / (noise.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    rows = ratio.view(len(images), 2, 1, 1, 1)
    return ((rows[:, 0] * normed + rows[:, 1] * images).mean(1) > 0.2).long()


def iou(predicted, masks):
    scores = SegmentationScores(2)
    scores.update(predicted, masks)
    return float(scores.compute()["miou"])


def test_one_sample_cannot_be_shuffled():
    with pytest.raises(UserError, match="expected two samples or more to shuffle λ between, got 1 in val"):
        measured(Chooser(), Flat(size=1))


WORTH = Worth(
    "test", 1000, "top-1", 0.95, {way: Way(0.92, 0.004, 0.9) for way in ("shuffled", "mean", "uniform")}
)


def with_shuffled(**values):
    return replace(WORTH, ways={"shuffled": replace(WORTH.ways["shuffled"], **values)})


def test_the_table_comes_back_as_it_was_written(tmp_path):
    assert read_worth(tmp_path / "shuffle.csv") is None
    write_worth(tmp_path / "shuffle.csv", WORTH)
    assert read_worth(tmp_path / "shuffle.csv") == WORTH
    header, rows = worth_table(WORTH)
    assert header[1] == "top-1"
    assert rows[1] == ["λ of another sample", "0.9200", "-3.00", "± 0.80", "90.0 %"]


def test_the_sentence_says_what_the_numbers_do():
    told = worth_in_words(WORTH)
    assert "costs 3 points (top-1 95.00 → 92.00 % on 1,000 test samples, ± 0.8)" in told
    assert "so far does this network lean on each sample's own λ." in told
    assert "only a network trained with one λ for all samples can tell" in told
    assert "do not show that this network leans on" in worth_in_words(with_shuffled(value=0.945))
    assert "changes the score by -0.5 points" in worth_in_words(with_shuffled(value=0.945))
    assert "gains 2 points" in worth_in_words(with_shuffled(value=0.97))
    assert "leaves the score as it is" in worth_in_words(with_shuffled(value=0.95, error=0.0))
    assert "costs 3 points" in worth_in_words(with_shuffled(error=NAN))
    assert "90.0 % of the predictions stay" in worth_in_words(replace(with_shuffled(value=NAN), own=NAN))
