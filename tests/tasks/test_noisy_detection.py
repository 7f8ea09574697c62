"""Memorisation, detection of wrong labels from losses and from λ, and the table of suspects."""

import csv
import math

import numpy as np
import pytest

from tasks.noisy_labels.detection import (
    clean_fit,
    label_precision,
    label_recall,
    memorised_share,
    noise_auroc,
    ratio_auroc,
    ratio_distance,
)
from tasks.noisy_labels.noise import corrupt
from tasks.noisy_labels.suspects import ranking, suspicion, write_suspects

TRUE = np.array([0, 0, 1, 1, 2, 2])
GIVEN = np.array([0, 1, 1, 2, 2, 0])  # wrong at 1, 3 and 5


def test_shares_by_hand():
    predicted = np.array([0, 1, 0, 2, 2, 2])
    assert memorised_share(predicted, GIVEN, TRUE) == pytest.approx(2 / 3)  # 1 and 3, not 5
    assert clean_fit(predicted, GIVEN, TRUE) == pytest.approx(2 / 3)  # 0 and 4, not 2
    selected = np.array([True, True, True, False, False, False])
    assert label_precision(selected, GIVEN, TRUE) == pytest.approx(2 / 3)
    assert label_recall(selected, GIVEN, TRUE) == pytest.approx(2 / 3)
    assert label_precision(np.array([True, False, True, False, False, False]), GIVEN, TRUE) == 1.0


def test_shares_of_nothing():
    nothing = np.zeros(6, bool)
    values = (
        memorised_share(TRUE, TRUE, TRUE),
        clean_fit(TRUE, (TRUE + 1) % 3, TRUE),
        label_precision(nothing, GIVEN, TRUE),
        label_recall(nothing, (TRUE + 1) % 3, TRUE),
        noise_auroc(np.arange(6.0), TRUE, TRUE),
        noise_auroc(np.arange(6.0), (TRUE + 1) % 3, TRUE),
    )
    assert all(math.isnan(value) for value in values)


def test_auroc_counts_pairs():
    score = np.array([0.1, 0.9, 0.4, 0.4, 0.8, 0.7])
    wrong, right = score[GIVEN != TRUE], score[GIVEN == TRUE]
    pairs = [(w > r) + 0.5 * (w == r) for w in wrong for r in right]
    assert noise_auroc(score, GIVEN, TRUE) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(ValueError, match="score: expected finite numbers, got 1 others"):
        noise_auroc(np.array([0, 0, 0, 0, 0, np.nan]), GIVEN, TRUE)


def ratios(samples, tilt, true):
    """λ of 5 layers and 3 normalizers that leans by `tilt` towards a normalizer of the true class."""
    logits = np.random.default_rng(2).normal(size=(samples, 5, 3))
    logits[np.arange(samples), :, true] += tilt
    powers = np.exp(logits)
    return powers / powers.sum(axis=2, keepdims=True)


def test_distances_by_definition():
    ratio, given = ratios(60, 1.0, np.arange(60) % 3), np.arange(60) % 2
    flat = ratio.reshape(60, -1)
    centred = np.stack([row - flat[given == label].mean(0) for row, label in zip(flat, given, strict=True)])
    want = [math.sqrt(sum(value**2 for value in row)) for row in centred.tolist()]
    np.testing.assert_allclose(ratio_distance(ratio, given, "euclidean"), want, rtol=1e-12)
    # The shrunk covariance of Ledoit & Wolf (2004), eq. 14, written out.
    covariance = centred.T @ centred / 60
    scale = np.trace(covariance) / 15
    spread = ((covariance - scale * np.eye(15)) ** 2).sum()
    noise = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in centred) / 60**2
    share = min(noise / spread, 1)
    inverse = np.linalg.inv((1 - share) * covariance + share * scale * np.eye(15))
    want = [math.sqrt(row @ inverse @ row) for row in centred]
    np.testing.assert_allclose(ratio_distance(ratio, given, "mahalanobis"), want, rtol=1e-9)


@pytest.mark.parametrize("distance", ["euclidean", "mahalanobis"])
def test_ratios_detect_what_is_in_them_and_nothing_else(distance):
    true = np.arange(1500) % 3
    given = corrupt(true, 3, "symmetric", 0.2, seed=0)
    # Whitening takes the spread of the wrong labels for spread within classes, and hides some of them.
    least = {"euclidean": 0.95, "mahalanobis": 0.8}[distance]
    assert ratio_auroc(ratios(1500, 3.0, true), given, true, distance) > least
    # λ that knows nothing of the class: ½ within five deviations of the statistic, √((m + n + 1) / 12mn).
    right = int((given == true).sum())
    deviation = math.sqrt(1501 / (12 * right * (1500 - right)))
    assert abs(ratio_auroc(ratios(1500, 0.0, true), given, true, distance) - 0.5) < 5 * deviation
    # λ = 1/K everywhere, as before training: all distances are one, every pair a tie.
    assert ratio_auroc(np.full((1500, 5, 3), 1 / 4), given, true, distance) == 0.5


def test_bad_ratios():
    with pytest.raises(ValueError, match=r"expected shapes \(N, L, K\) and \(N\), got \(4, 3\) and \(4,\)"):
        ratio_distance(np.zeros((4, 3)), np.zeros(4, np.int64))


P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.7, 0.2, 0.1]])
LABELS = np.array([0, 2, 2, 1])


def test_scores_by_hand():
    np.testing.assert_allclose(suspicion(P, LABELS, "self_confidence"), [0.3, 0.7, 0.6, 0.8])
    np.testing.assert_allclose(suspicion(P, LABELS), [0.25, 0.65, 0.45, 0.75])
    assert ranking(suspicion(P, LABELS)).tolist() == [3, 1, 2, 0]


def test_equal_scores_stand_in_the_order_of_the_samples():
    assert ranking(np.arange(50) // 25 / 2).tolist() == [*range(25, 50), *range(25)]


def test_the_table(tmp_path):
    given, predicted, score = np.array([1, 0]), np.array([1, 2]), np.array([0.25, 0.98765432])
    names, classes = ["plain.jpg", 'with "quotes", commas.jpg'], ["cat", "dog", "cow"]
    path = tmp_path / "suspects.csv"
    write_suspects(path, given, predicted, score, names.__getitem__, classes.__getitem__)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["sample", "given", "predicted", "score", "path"],
            ["1", "cat", "cow", "0.987654", names[1]],
            ["0", "dog", "dog", "0.250000", names[0]],
        ]
    # Never seen in training: no prediction.
    unseen = np.array([-1, predicted[1]])
    write_suspects(path, given, unseen, score, names.__getitem__, classes.__getitem__, true=given)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["sample", "given", "predicted", "score", "path", "true"],
            ["1", "cat", "cow", "0.987654", names[1], "cat"],
            ["0", "dog", "", "0.250000", names[0], "dog"],
        ]
    with pytest.raises(ValueError, match=r"suspects: expected equal shapes, got \(2,\), \(1,\) and \(2,\)"):
        write_suspects(path, given, predicted[:1], score, str)


@pytest.mark.parametrize(
    ("p", "labels", "kind", "message"),
    [
        (P, LABELS[:2], "self_confidence", r"expected shapes \(N, C\) and \(N\), got \(4, 3\) and \(2,\)"),
        (P[:, :1], LABELS, "self_confidence", r"got \(4, 1\) and \(4,\)"),
        (P, LABELS + 1, "self_confidence", "labels: expected 0 to 2, got 1 to 3"),
        (P * np.nan, LABELS, "self_confidence", "probabilities: expected finite numbers, got 12 others"),
        (P, LABELS, "margin", "kind: expected one of self_confidence, normalized_margin, got 'margin'"),
    ],
)
def test_bad_scores(p, labels, kind, message):
    with pytest.raises(ValueError, match=message):
        suspicion(p, labels, kind)


@pytest.fixture(scope="module")
def digits():
    """Out-of-sample predictions for the digits under 40 % noise, and their labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    images, true = load_digits(return_X_y=True)
    given = corrupt(true, 10, "symmetric", 0.4, seed=0)
    p = cross_val_predict(KNeighborsClassifier(25), images, given, cv=5, method="predict_proba")
    return p, given, true


@pytest.mark.parametrize("kind", ["self_confidence", "normalized_margin"])
def test_suspects_of_real_digits(digits, kind):
    p, given, true = digits
    score = suspicion(p, given, kind)
    assert noise_auroc(score, given, true) > 0.95
    first = ranking(score)[:300]
    assert (given[first] != true[first]).mean() > 0.95


@pytest.mark.parametrize("kind", ["self_confidence", "normalized_margin"])
def test_agreement_with_cleanlab(digits, kind):
    rank = pytest.importorskip("cleanlab.rank")
    p, given, true = digits
    quality = rank.get_label_quality_scores(given, p, method=kind)
    # One formula in float64
    np.testing.assert_allclose(suspicion(p, given, kind), 1 - quality, rtol=0, atol=1e-12)
    # The samples that cleanlab would have looked at, in its order of suspicion
    filter_ = pytest.importorskip("cleanlab.filter")
    issues = filter_.find_label_issues(given, p, return_indices_ranked_by=kind, n_jobs=1)
    ours = ranking(suspicion(p, given, kind))[: len(issues)].tolist()
    shared = len(set(ours) & set(issues.tolist())) / len(issues)
    print(f"{kind}: {len(issues)} issues of cleanlab, {shared:.3f} among as many first suspects")
    assert shared > 0.9
    assert (given != true)[ours].mean() >= (given != true)[issues].mean() - 0.01
