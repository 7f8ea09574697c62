"""The benchmark of growing work measures every candidate at every value, and fits exponents."""

import math

import pytest
import torch
from torch import nn

from benchmarks import growth


def test_exponent_is_that_of_the_upper_half():
    values = [1, 2, 4, 8]
    assert growth.exponent(values, [5, 5, 3 * 4**1.5, 3 * 8**1.5]) == pytest.approx(1.5)
    assert growth.exponent(values[::-1], [16.0, 8, 4, 2]) == pytest.approx(1)
    assert growth.exponent([1, 2, 3], [7, 7, 7]) == 0
    assert math.isnan(growth.exponent([2], [7]))


def test_a_stack_has_a_normalizer_of_its_width_in_each_block():
    stack = growth.stack(nn.BatchNorm2d, 3, 8)
    assert [type(m).__name__ for m in stack] == 3 * ["Conv2d", "BatchNorm2d", "ReLU"]
    assert stack(torch.randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)


@pytest.mark.parametrize("count", range(1, 5))
def test_normalizers_grow_in_number(count):
    built = growth.candidates_of("normalizers", count)
    assert all(len(build(32).layer.normalizers) == count for build in built.values())


def test_growth_reports_every_factor_and_candidate(result_of, monkeypatch, capsys):
    few = {factor: values[:2] for factor, values in growth.FACTORS.items()} | {"resolution": (4, 8)}
    monkeypatch.setattr(growth, "FACTORS", few)
    monkeypatch.setattr(growth, "LAYER", {"channels": 32, "resolution": 6})
    monkeypatch.setattr(growth, "STACK", {"channels": 8, "resolution": 6})
    # Inductor would be called for minutes.
    monkeypatch.setattr(growth, "LAYERS", ("BN", "GN", "SN plain", "EN eager"))
    candidates_of = growth.candidates_of

    def not_built(factor, value):
        return {name: b for name, b in candidates_of(factor, value).items() if name != "EN compiled"}

    monkeypatch.setattr(growth, "candidates_of", not_built)
    rows = result_of(growth, "--rounds", "2", "--batch", "2")["rows"]
    assert [(r["factor"], r["value"], r["candidate"]) for r in rows] == [
        (factor, value, name)
        for factor, values in few.items()
        for value in values
        for name in not_built(factor, value)
    ]
    one, two = (
        next(r for r in rows if (r["factor"], r["value"], r["candidate"]) == ("batch", n, "BN"))
        for n in (1, 2)
    )
    # X, and the mean and deviation of each channel, of the batch and running.
    assert (one["saved"], two["saved"]) == tuple(4 * (n * 32 * 36 + 4 * 32) for n in (1, 2))
    assert {row["resolution"] for row in rows if row["factor"] == "resolution"} == {4, 8}
    # EN keeps X once at any number of normalizers: what is added are numbers a sample and channel.
    saved = [r["saved"] for r in rows if r["factor"] == "normalizers"]
    assert saved[0] < saved[1] < 1.5 * saved[0]
    out = capsys.readouterr().out
    assert "| batch | 2 |" in out and "| depth | peak bytes |" in out


def test_only_the_factors_asked_for_are_measured(result_of, monkeypatch):
    monkeypatch.setattr(growth, "FACTORS", {"depth": (1,), "batch": (1,)})
    monkeypatch.setattr(growth, "STACK", {"channels": 8, "resolution": 4})
    rows = result_of(growth, "--rounds", "1", "--batch", "2", "--factors", "depth")["rows"]
    assert [row["candidate"] for row in rows] == ["BN", "EN eager"]
    assert all(row["factor"] == "depth" and row["batch"] == 2 for row in rows)
