"""Run a benchmark's command line in this process."""

import json

import pytest
import torch

from benchmarks import measure


@pytest.fixture
def result_of(tmp_path, monkeypatch):
    """result_of(benchmark, *options) → what the benchmark writes, in a folder of the test's."""

    def run(benchmark, *options):
        name = benchmark.__name__.rpartition(".")[2]
        monkeypatch.setattr(measure, "RESULTS", tmp_path)
        monkeypatch.setattr("sys.argv", [name, *options])
        threads = torch.get_num_threads()
        try:
            benchmark.main()
        finally:
            torch.set_num_threads(threads)
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run
