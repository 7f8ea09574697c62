"""The benchmark of whole networks reports every candidate, and EN keeps little more than BN."""

import pytest
import torch

from benchmarks import network
from exemplar_norm import convert_norm


@pytest.fixture
def rows(result_of, capsys):
    small = ("--rounds", "1", "--batch", "2", "--size", "64", "--networks", "resnet18")
    rows = result_of(network, *small, result="network-2x64")["rows"]
    assert "| resnet18 | training step |" in capsys.readouterr().out
    return rows


def test_every_candidate_is_measured_in_both_modes(rows):
    assert [(row["mode"], row["candidate"]) for row in rows] == [
        (mode, name) for mode in ("training step", "inference") for name in network.CANDIDATES
    ]
    saved = {row["candidate"]: row["saved"] for row in rows if "saved" in row}
    assert all(("saved" in row) == (row["mode"] == "training step") for row in rows)
    # X alone is kept for the backward, and numbers a sample and channel, which weigh much at 64² and below.
    assert saved["bn"] < saved["en"] < 1.2 * saved["bn"]
    assert all(row["ms_ratio"] == 1 for row in rows if row["candidate"] == "bn")


@pytest.fixture
def runs(monkeypatch):
    """Runs of each candidate, of a network that is one matrix."""
    counts = dict.fromkeys(network.CANDIDATES, 0)

    class Matrix(torch.nn.Linear):
        def forward(self, images):
            counts[self.candidate] += 1
            return super().forward(images.flatten(1))

    def build(_, candidate):
        model = Matrix(3 * 4 * 4, 2)
        model.candidate = candidate
        return model

    monkeypatch.setattr(network, "build", build)
    return counts


TINY = ("--rounds", "3", "--batch", "16", "--size", "4", "--networks", "any")


def test_each_candidate_runs_once_before_the_rounds_and_once_for_its_memory(runs, result_of):
    rows = result_of(network, *TINY, result="network-16x4")["rows"]
    assert set(runs.values()) == {2 * (1 + 3 + 1)}
    assert not any("graph_breaks" in row or "compile_s" in row for row in rows)


def test_saved_bytes_are_those_under_autocast(runs, result_of):
    saved = {
        name: {row["saved"] for row in result_of(network, *TINY, *options, result=name)["rows"][:5]}
        for name, options in (("network-16x4", ()), ("network-16x4-cpu-bfloat16", ("--dtype", "bfloat16")))
    }
    images = 16 * 48 * 4
    # The loss keeps a logarithm for each of two classes and the target; autocast keeps a copy of the matrix.
    assert all(images < s < 1.2 * images for s in saved["network-16x4"])
    assert all(images / 2 < s < 0.7 * images for s in saved["network-16x4-cpu-bfloat16"])


@pytest.mark.slow
def test_compiled_networks_have_no_graph_break(result_of, monkeypatch, capsys):
    def build(_, candidate):
        block = (torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten())
        model = torch.nn.Sequential(*block)
        chosen = network.CANDIDATES[candidate]
        return convert_norm(model, **chosen) if chosen else model

    monkeypatch.setattr(network, "build", build)
    monkeypatch.setattr(network, "CANDIDATES", {"bn": {}, "en": {"norm": "en"}})
    rows = result_of(network, *TINY, "--compile", result="network-compiled-16x4")["rows"]
    assert all(row["compiled"] and row["graph_breaks"] == 0 for row in rows)
    # Seconds against milliseconds.
    assert all(row["compile_s"] > row["ms"] / 1e3 and "compile_ratio" in row for row in rows)
    assert "|  | graph breaks | 0 | 0 |" in capsys.readouterr().out


@pytest.mark.slow
def test_graph_breaks_are_counted():
    class Broken(torch.nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x + 1

    model = Broken()
    assert network.first_run(model, lambda: model(torch.ones(2)), compiled=True)[1] == 1
