"""What Inductor makes of a layer: X-sized results are the output and dX alone, and nothing is float64."""

import math
import re

import pytest
import torch
from torch._inductor.utils import run_fw_bw_and_get_code

from benchmarks.measure import saved_bytes
from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.switch import SwitchNorm

SHAPES = {"1d": (4, 6, 35), "2d": (4, 6, 7, 5), "3d": (4, 6, 3, 5, 7)}
CHANNELS_LAST = {"2d": torch.channels_last, "3d": torch.channels_last_3d}


def large_buffers(code, size):
    """Sizes of the tensors that generated code allocates, of `size` elements or more."""
    shapes = re.findall(r"= empty_strided_cpu\(\(([\d, ]*)\)", code)
    sizes = [math.prod(int(number) for number in shape.split(",") if number.strip()) for shape in shapes]
    return [found for found in sizes if found >= size]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Inductor
@pytest.mark.parametrize(
    "kind, last",
    [
        ("2d", False),
        ("2d", True),
        *(pytest.param(kind, last, marks=pytest.mark.slow) for kind, last in
          [("1d", False), ("3d", False), ("3d", True)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("norm", [ExemplarNorm, pytest.param(SwitchNorm, marks=pytest.mark.slow)])
def test_no_copies_between_layouts(norm, kind, last):
    torch._dynamo.reset()
    layer = norm(6)
    x = torch.randn(SHAPES[kind])
    x = (x.to(memory_format=CHANNELS_LAST[kind]) if last else x).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    y, codes = run_fw_bw_and_get_code(lambda: compiled(x))
    assert y.stride() == x.stride() == x.grad.stride()
    assert [large_buffers(code, x.numel()) for code in codes] == [[x.numel()], [x.numel()]]
    # `double` stands in generated code where a number is computed in it.
    assert not any(re.search(r"\bdouble\b|float64", code) for code in codes)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Inductor
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str
)
def test_x_is_kept_for_the_backward_as_it_came(dtype):
    torch._dynamo.reset()
    layer = ExemplarNorm(16)
    x = torch.randn(4, 16, 28, 28, dtype=dtype, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    saved = saved_bytes(lambda: compiled(x), list(layer.parameters()))
    # Beside X, float32 numbers of each sample and channel, of which X has 784.
    assert x.nbytes < saved < 1.1 * x.nbytes
    torch._dynamo.reset()
