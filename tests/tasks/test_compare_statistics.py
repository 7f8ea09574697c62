"""Intervals, pairing and sign flips of a comparison against scipy's t-test, tables and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from tasks.compare.plan import Comparison, Run
from tasks.compare.results import FINISHED, UNFINISHED, Result
from tasks.compare.statistics import difference, mean_of, sign_flip
from tasks.compare.summary import outcome_table, summarise


def test_the_interval_is_that_of_a_table():
    # t(0.975, 2) = 4.3027 in every printed table; s of 1, 2, 3 is 1.
    mean = mean_of([1.0, 2.0, 3.0])
    assert mean.value == pytest.approx(2) and mean.count == 3
    assert mean.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # the table has five digits
    assert mean_of([0.5]).half is None and mean_of([0.5]).value == 0.5


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_intervals_are_those_of_the_t_test(count):
    generator = np.random.default_rng(count)
    first, other = generator.normal(0.9, 0.02, count), generator.normal(0.91, 0.02, count)
    mean = mean_of(list(first))
    low, high = ttest_1samp(first, 0).confidence_interval()
    assert (mean.value - mean.half, mean.value + mean.half) == pytest.approx((low, high), rel=1e-12)
    found = difference(dict(enumerate(first)), dict(enumerate(other)))
    paired = ttest_rel(other, first)
    low, high = paired.confidence_interval()
    assert found.mean.value - found.mean.half == pytest.approx(low, rel=1e-9, abs=1e-12)
    assert found.mean.value + found.mean.half == pytest.approx(high, rel=1e-9, abs=1e-12)
    # The interval of 95 % holds zero where the test does not reject at 5 %.
    assert found.mean.holds_zero == (paired.pvalue >= 0.05)


def test_only_the_seeds_that_both_have_are_paired():
    found = difference({0: 0.5, 1: 0.6, 3: 0.9}, {3: 0.7, 1: 0.65, 2: 0.1})
    assert found.by_seed == pytest.approx({1: 0.05, 3: -0.2})
    assert found.mean.value == pytest.approx(-0.075) and found.mean.count == 2
    assert difference({0: 1.0}, {1: 1.0}) is None


def brute_force(values):
    seen = abs(sum(values))
    flips = itertools.product((-1, 1), repeat=len(values))
    # 1e-12: sums of the same numbers in another order
    return sum(abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= seen - 1e-12 for signs in flips)


@pytest.mark.parametrize("count", [5, 6, 9])
@pytest.mark.parametrize("shift", [0, 0.5, 3])
def test_sign_flips_are_all_gone_through(count, shift):
    values = list(np.random.default_rng(count).normal(shift, 1, count))
    assert sign_flip(values) == pytest.approx(brute_force(values) / 2**count, rel=1e-12)


def test_sign_flips_of_ties_and_of_few():
    assert sign_flip([1.0] * 5) == 2 / 32  # all one way: the least that five pairs can give
    assert sign_flip([0.0] * 5) == 1
    assert sign_flip([1, -1, 1, -1, 2, 0]) == brute_force([1, -1, 1, -1, 2, 0]) / 64
    assert sign_flip([1.0] * 4) is None and sign_flip([1.0] * 21) is None


def results_of(tmp_path, values):
    comparison = Comparison("classification", ("c.yaml",), tuple(values), (0, 1, 2), (), tmp_path)
    results = [
        Result(Run(norm, seed), UNFINISHED if value is None else FINISHED, test=value, monitor="val/top1")
        for norm, row in values.items()
        for seed, value in enumerate(row)
    ]
    return summarise(comparison, results)


def test_the_table_says_what_can_be_said(tmp_path):
    header, rows = outcome_table(
        results_of(
            tmp_path,
            {
                "bn": [0.90, 0.92, 0.91],
                "sn": [0.91, 0.92, 0.90],
                "en": [0.95, 0.9701, 0.96],
                "gn": [0.80, 0.8202, None],
                "in": [None, 0.5, None],
                "ln": [None, None, None],
            },
        )
    )
    assert header == ["norm", "test/top1, %", "by seed", "minus bn, points", "verdict"]
    told = {row[0]: row for row in rows}
    # s = 0.01, t = 4.3027: 2.484
    assert told["bn"][1:] == ["91.00 ± 2.48", "90.00, 92.00, 91.00", "–", "–"]
    assert told["sn"][3:] == ["+0.00 ± 2.48", "cannot be told apart"]
    # differences 5, 5.01, 5: mean 5.0033, s = 0.0057735, half = 0.01434
    assert told["en"][3:] == ["+5.00 ± 0.01", "better than bn"]
    # −10, −9.98: t(0.975, 1) = 12.706, s = 0.014142, half = 0.12706
    assert told["gn"][2:] == ["80.00, 82.02, unfinished", "-9.99 ± 0.13", "worse than bn"]
    assert told["in"][1:4] == ["50.00", "unfinished, 50.00, unfinished", "-42.00"]
    assert told["in"][4] == "one seed alone cannot tell"
    assert told["ln"][3:] == ["–", "no seed that both ln and bn have finished"]
