"""Statistics of λ against plain loops over samples, on one and two processes, and on planted cases."""

import math
import warnings

import numpy as np
import pytest
import torch

from exemplar_norm import NORMS, set_sparsity
from tasks.ratios.survey import RatioSurvey, static_ratios
from tests.family.rank_jobs import run_on_ranks
from tests.tasks import ratio_jobs
from tests.tasks.ratio_jobs import CLASSES, NORMALIZERS, SAMPLES, samples, single_ratios, survey

# λ comes in float32 from batches of another size than the loop's: rounding of 6e-8, on ratios below 1.
LAMBDA = 1e-6


def check(layers):
    rows, labels = single_ratios(), samples()[1].tolist()
    assert [layer.layer for layer in layers] == list(NORMALIZERS)  # and not the layer that never ran
    for layer in layers:
        ratios = rows[layer.layer].tolist()
        K = len(layer.normalizers)
        assert (layer.kind, layer.mixture, layer.samples) == ("en", "both", SAMPLES)
        assert layer.normalizers == NORMALIZERS[layer.layer]
        mean = [sum(row[k] for row in ratios) / SAMPLES for k in range(K)]
        variance = [sum((row[k] - mean[k]) ** 2 for row in ratios) / SAMPLES for k in range(K)]
        largest = [sum(row[k] == max(row) for row in ratios) / SAMPLES for k in range(K)]
        entropy = -sum(p * math.log(p) for row in ratios for p in row) / SAMPLES / math.log(K)
        assert layer.mean == pytest.approx(mean, abs=LAMBDA)
        assert layer.std == pytest.approx([math.sqrt(v) for v in variance], abs=LAMBDA)
        assert layer.largest == pytest.approx(largest, abs=1e-12)  # counts
        assert layer.entropy == pytest.approx(entropy, abs=1e-5)  # dp·log p, p ≥ e⁻¹⁰
        # A ratio of two sums that carry LAMBDA each, the lower one above 0.1.
        most = sum(m * (1 - m) for m in mean)
        assert layer.spread == pytest.approx(sum(variance) / most, abs=1e-4)
        by_class = [
            [row for row, label in zip(ratios, labels, strict=True) if label == c] for c in range(CLASSES)
        ]
        between = 0.0
        for c, own in enumerate(by_class):
            assert layer.class_samples[c] == len(own)
            if not own:
                assert np.isnan(layer.class_mean[c]).all()
                continue
            of_class = [sum(row[k] for row in own) / len(own) for k in range(K)]
            assert layer.class_mean[c] == pytest.approx(of_class, abs=LAMBDA)
            between += len(own) * sum((a - b) ** 2 for a, b in zip(of_class, mean, strict=True)) / SAMPLES
        assert layer.between == pytest.approx(between / sum(variance), abs=1e-4)


def test_one_process():
    check(survey(rank=0, world=1))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(ratio_jobs.jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("job", ["shared", "one_sees_nothing"])
def test_two_processes_find_what_one_finds(ranks, job):
    for found in ranks(job):
        check(found)


def planted(ratios, labels, classes):
    """The one layer of a survey that saw the ratios (N, K), in two batches."""
    keys = ("in", "ln", "bn")[: len(ratios[0])]
    found = RatioSurvey({"layer": NORMS["en"](4, normalizers=keys)}, classes)
    ratio, known = torch.tensor(ratios), torch.tensor(labels)
    for part in (slice(0, 1), slice(1, None)):
        found.update({"layer": ratio[part]}, known[part])
    return found.finish()[0]


def test_variance_within_and_between_classes_by_hand():
    # Class means (0.25, 0.75) and (0.75, 0.25) about (0.5, 0.5): 1/16 a normalizer between the classes;
    # deviations of 1/8 within them: 1/64. Of the largest variance, 1/4 each: (1/16 + 1/64) / (1/4).
    ratios = [[0.125, 0.875], [0.375, 0.625], [0.625, 0.375], [0.875, 0.125]]
    layer = planted(ratios, [0, 0, 1, 1], 2)
    assert layer.mean.tolist() == [0.5, 0.5]
    assert layer.std**2 == pytest.approx([5 / 64] * 2, rel=1e-12)  # exact fractions of two in float64
    assert layer.between == pytest.approx(4 / 5, rel=1e-12)
    assert layer.spread == pytest.approx(5 / 16, rel=1e-12)
    assert layer.largest.tolist() == [0.5, 0.5]
    assert layer.class_mean.tolist() == [[0.25, 0.75], [0.75, 0.25]]


def test_a_constant_has_no_spread_and_no_share():
    layer = planted([[0.25, 0.25, 0.5]] * 3, [0, 1, 1], 2)
    assert layer.spread == 0 and math.isnan(layer.between)
    assert layer.entropy == pytest.approx(1.5 * math.log(2) / math.log(3), rel=1e-12)
    even = planted([[1 / 3] * 3] * 2, [0, 1], 2)
    assert even.entropy == pytest.approx(1, rel=1e-6)  # 1/3 in float32
    assert even.largest == pytest.approx([1 / 3] * 3, rel=1e-12), "equal ratios share the sample"


def test_one_normalizer_for_each_sample_is_all_the_spread_there_is():
    layer = planted([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 0, 1], 2)
    assert (layer.spread, layer.entropy, layer.between) == (1, 0, 0)
    assert planted([[1.0, 0.0]] * 3, [0, 0, 1], 2).spread == 0


def test_tiny_variation_is_not_lost():
    # 2⁻²⁰ about 0.5 is exact in float32; sums of squares would carry 0.25 beside its square, 1e-12.
    step = 2.0**-20
    layer = planted([[0.5 - step, 0.5 + step], [0.5 + step, 0.5 - step]], [0, 1], 2)
    assert layer.std == pytest.approx([step, step], rel=1e-12)


def test_a_class_that_is_unknown_leaves_no_statement_about_classes():
    layer = planted([[0.5, 0.5], [0.25, 0.75]], [0, -1], 2)
    assert layer.samples == 2 and layer.class_mean is None and math.isnan(layer.between)


def test_several_passes_over_a_batch_repeat_its_labels():
    found = RatioSurvey({"layer": NORMS["en"](4, normalizers=("in", "bn"))}, 2)
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    found.update({"layer": rows}, torch.tensor([0, 1]))
    assert found.finish()[0].class_mean.tolist() == [[0.25, 0.75], [1.0, 0.0]]


def test_mixtures_of_switchable_layers():
    net = torch.nn.Sequential(NORMS["sn"](4), NORMS["ssn"](4, normalizers=("in", "bn")))
    with torch.no_grad():
        net[0].mean_weight.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
        net[1].var_weight.copy_(torch.tensor([0.0, 1.0]))
    set_sparsity(net, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means, variances, _, sparse = static_ratios(net)
    assert (means.layer, means.kind, means.mixture, means.samples) == ("0", "sn", "mean", 0)
    assert means.mean == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-7)  # float32 softmax
    assert means.largest.tolist() == [0, 0, 1]
    assert variances.entropy == pytest.approx(1, abs=1e-6)
    assert (sparse.kind, sparse.mixture, sparse.entropy) == ("ssn", "variance", 0)
    assert sparse.mean.tolist() == [0, 1]
