"""Synthetic label noise: matrices by hand, rates of draws, and the file that keeps them."""

import os

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.noisy_labels.noise import corrupt, transition_matrix
from tasks.noisy_labels.noise_file import read_labels, write_labels

KINDS = ["symmetric", "symmetric_inclusive", "pair", "asymmetric"]


@pytest.mark.parametrize(
    ("kind", "mapping", "want"),
    [
        ("symmetric", None, [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]]),
        ("symmetric_inclusive", None, [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]),
        ("pair", None, [[0.4, 0.6, 0.0], [0.0, 0.4, 0.6], [0.6, 0.0, 0.4]]),
        ("asymmetric", {2: 0}, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.4]]),
    ],
)
def test_matrices(kind, mapping, want):
    np.testing.assert_allclose(transition_matrix(kind, 0.6, 3, mapping), want, rtol=0, atol=1e-15)


def test_the_map_of_cifar_10():
    matrix = transition_matrix("asymmetric", 1.0, 10)
    # airplane automobile bird cat deer dog frog horse ship truck
    assert matrix.argmax(axis=1).tolist() == [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]
    assert (matrix.max(axis=1) == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
def test_draws_follow_the_matrix(kind, rate):
    classes, each = 10, 20_000
    true = np.repeat(np.arange(classes), each)[np.random.default_rng(1).permutation(classes * each)]
    given = corrupt(true, classes, kind, rate, seed=3)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (true, given), 1)
    want = transition_matrix(kind, rate, classes)
    # Five binomial deviations: of 100 entries one lies beyond by chance in 17,000 trials; the seed is fixed.
    deviation = np.sqrt(want * (1 - want) / each)
    assert (np.abs(counts / each - want) <= 5 * deviation).all()
    wrong = {"symmetric": rate, "pair": rate, "asymmetric": rate / 2, "symmetric_inclusive": rate * 0.9}[kind]
    total = classes * each
    assert abs((given != true).mean() - wrong) < 5 * np.sqrt(wrong * (1 - wrong) / total)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_seed_alone(kind):
    true = np.arange(1000) % 10
    first = corrupt(true, 10, kind, 0.4, seed=5)
    np.random.default_rng(9)
    torch.manual_seed(9)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert np.array_equal(first, corrupt(true, 10, kind, 0.4, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert not np.array_equal(first, corrupt(true, 10, kind, 0.4, seed=6))
    assert np.array_equal(true, np.arange(1000) % 10)  # the input stays
    assert np.array_equal(corrupt(true, 10, kind, 0.0, seed=5), true)


def test_all_labels_move_at_rate_one():
    true = np.arange(30) % 3
    assert np.array_equal(corrupt(true, 3, "pair", 1.0, seed=0), (true + 1) % 3)
    assert (corrupt(true, 3, "symmetric", 1.0, seed=0) != true).all()


def test_no_labels_and_small_types():
    assert corrupt(np.array([], np.int64), 3, "pair", 1.0, seed=0).tolist() == []
    assert corrupt(np.array([199], np.uint8), 300, "pair", 1.0, seed=0).tolist() == [200]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Symmetric"}, "kind: expected one of symmetric, symmetric_inclusive, pair, asymmetric"),
        ({"rate": 1.1}, r"rate: expected a number in \[0, 1\], got 1.1"),
        ({"rate": float("nan")}, "rate: expected"),
        ({"num_classes": 1}, "labels: expected 0 to 0, got 0 to 2"),
        ({"labels": np.array([0, -1])}, "labels: expected 0 to 2, got -1 to 0"),
        ({"labels": np.array([0.0])}, r"labels: expected integers \(N\), got float64 of shape \(1,\)"),
        ({"labels": np.array([[0]])}, r"labels: expected integers \(N\), got int64 of shape \(1, 1\)"),
        ({"seed": -1}, "seed: expected a number ≥ 0, got -1"),
        ({"kind": "asymmetric"}, r"mapping: expected a map of classes .*, got none"),
        ({"kind": "asymmetric", "mapping": {0: 3}}, "mapping: expected classes from 0 to 2, got 0 → 3"),
        ({"mapping": {0: 1}}, "mapping: expected none with 'symmetric' noise"),
    ],
)
def test_bad_noise(change, message):
    arguments = {"labels": np.array([0, 1, 2]), "num_classes": 3, "kind": "symmetric", "rate": 0.4, "seed": 0}
    with pytest.raises(ValueError, match=message):
        corrupt(**{**arguments, **change})


# With a comma, a quote, a line feed, and bytes that are no UTF-8, as file names may have.
NAMES = ["a.jpg", 'b,"c".jpg', "line\nfeed.jpg", os.fsdecode(b"\xff.jpg")]


def test_the_file_gives_back_what_was_written(tmp_path):
    path, given, true = tmp_path / "noisy_labels.csv", np.array([2, 0, 1, 2]), np.array([2, 1, 1, 0])
    write_labels(path, NAMES, given, true)
    assert path.read_bytes().startswith(b"sample,given,true\r\na.jpg,2,2\r\n")
    read = read_labels(path, NAMES, 3)
    assert np.array_equal(read[0], given) and np.array_equal(read[1], true)
    assert [entry.name for entry in tmp_path.iterdir()] == ["noisy_labels.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "noisy_labels.csv"
    write_labels(path, ["a"], np.array([0]), np.array([0]))
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_labels(path, ["b", "\ud800"], np.array([0, 0]), np.array([0, 0]))
    with pytest.raises(ValueError, match="longer"):
        write_labels(path, ["b"], np.array([0, 0]), np.array([0, 0]))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["noisy_labels.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: expected sample,given,true, got ''"),
        ("sample,given\na,0\n", ":1: expected sample,given,true, got 'sample,given'"),
        ("sample,given,true\na,0\nb,0,1\n", ":2: expected sample,given,true, got 'a,0'"),
        ("sample,given,true\na,0,1\nc,0,1\n", ":3: expected sample 'b', got 'c': labels of other data"),
        ("sample,given,true\na,0,3\nb,0,1\n", ":2: expected a class from 0 to 2, got '3'"),
        ("sample,given,true\na,-1,0\nb,0,1\n", ":2: expected a class from 0 to 2, got '-1'"),
        ("sample,given,true\na,²,0\nb,0,1\n", ":2: expected a class from 0 to 2, got '²'"),
        ("sample,given,true\na,0,0\n", ": expected the labels of 2 samples, got 1"),
        ("sample,given,true\na,0,0\nb,0,0\nc,0,0\n", ": expected the labels of 2 samples, got 3"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "noisy_labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_labels(path, ["a", "b"], 3)
    assert str(error.value) == f"{path}{message}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.csv: "):
        read_labels(tmp_path / "none.csv", [], 3)
