"""The benchmark of whole networks reports every candidate, and EN keeps little more than BN."""

import pytest

from benchmarks import network


@pytest.fixture
def rows(result_of, capsys):
    small = ("--rounds", "1", "--batch", "2", "--size", "64", "--networks", "resnet18")
    rows = result_of(network, *small)["rows"]
    assert "| resnet18 | training step |" in capsys.readouterr().out
    return rows


def test_every_candidate_is_measured_in_both_modes(rows):
    assert [(row["mode"], row["candidate"]) for row in rows] == [
        (mode, name) for mode in ("training step", "inference") for name in network.CANDIDATES
    ]
    saved = {row["candidate"]: row["saved"] for row in rows if row["mode"] == "training step"}
    # X alone is kept for the backward, and numbers a sample and channel, which weigh much at 64² and below.
    assert saved["bn"] < saved["en"] < 1.2 * saved["bn"]
    assert all(row["ms_ratio"] == 1 for row in rows if row["candidate"] == "bn")
