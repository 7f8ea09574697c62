"""Run a benchmark's command line in this process."""

import json

import pytest
import torch

from benchmarks import measure


@pytest.fixture
def result_of(tmp_path, monkeypatch):
    """result_of(benchmark, *options, result="its name") → what it writes, in a folder of the test's."""

    def run(benchmark, *options, result=None):
        name = benchmark.__name__.rpartition(".")[2]
        monkeypatch.setattr(measure, "RESULTS", tmp_path)
        # This process goes on with other tests: its memory stays as it was.
        monkeypatch.setattr("sys.argv", [name, *options, "--allocator", "default"])
        threads = torch.get_num_threads()
        try:
            benchmark.main()
        finally:
            torch.set_num_threads(threads)
        return json.loads((tmp_path / f"{result or name}.json").read_text())

    return run
