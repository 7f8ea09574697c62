"""The Triton kernels on the CPU: tests that run in a process where Triton interprets them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def run_interpreted(*arguments: str) -> None:
    """Run pytest where Triton reads its mode: before it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=900", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def test_layers_on_a_few_shapes():
    few = "in-ln-bn and mean and not mean_std or split or outlier or fused or launches"
    run_interpreted("tests/kernels/interpreted_layers.py", "-k", few)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_layers():
    run_interpreted("tests/kernels/interpreted_layers.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "case",
    ["low_precision and float32-module", "large_mean and en and 1000", "constant", "one_value", "outlier"],
)
def test_table_of_numerics(case):
    """The tests that the eager forms pass, on the kernels."""
    run_interpreted("tests/layers/test_numerics.py", "-k", case)
