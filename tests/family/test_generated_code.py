"""What Inductor makes of a layer: X-sized results are the output and dX alone, and nothing is float64."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_fw_bw_and_get_code

from benchmarks.measure import saved_bytes
from exemplar_norm import convert_norm
from exemplar_norm.exemplar import ExemplarNorm
from exemplar_norm.switch import SwitchNorm

SHAPES = {"1d": (4, 6, 35), "2d": (4, 6, 7, 5), "3d": (4, 6, 3, 5, 7)}
CHANNELS_LAST = {"2d": torch.channels_last, "3d": torch.channels_last_3d}


def large_buffers(code, size):
    """Sizes of the tensors that generated code allocates, of `size` elements or more."""
    shapes = re.findall(r"= empty_strided_cpu\(\(([\d, ]*)\)", code)
    sizes = [math.prod(int(number) for number in shape.split(",") if number.strip()) for shape in shapes]
    return [found for found in sizes if found >= size]


def generated(module, x):
    """The code that Inductor makes of a forward and a backward pass: nothing in it is float64."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    y, codes = run_fw_bw_and_get_code(lambda: compiled(x))
    torch._dynamo.reset()
    assert y.stride() == x.stride() == x.grad.stride()
    # `double` stands in generated code where a number is computed in it.
    assert not any(re.search(r"\bdouble\b|float64", code) for code in codes)
    forward, backward = codes
    return forward, backward


def in_layout(x, last):
    return (x.to(memory_format=CHANNELS_LAST[f"{x.dim() - 2}d"]) if last else x).requires_grad_()


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
    x = in_layout(torch.randn(SHAPES[kind]), last)
    assert [large_buffers(code, x.numel()) for code in generated(norm(6), x)] == [[x.numel()], [x.numel()]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Inductor
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("norm", [ExemplarNorm, SwitchNorm])
def test_no_copies_in_float32_of_a_bfloat16_input(norm, last):
    x = in_layout(torch.randn(SHAPES["2d"]).bfloat16(), last)
    assert [large_buffers(code, x.numel()) for code in generated(norm(6), x)] == [[x.numel()], [x.numel()]]


class Neighbours(nn.Module):
    """Layers between convolutions, ReLUs and, if asked for, a residual sum; everything is of X's size."""

    def __init__(self, kernel, residual):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(6, 6, kernel, padding="same", bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.residual = residual

    def forward(self, x):
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + x if self.residual else y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Inductor
@pytest.mark.parametrize(
    "kernel, residual, last",
    [(3, True, True), (3, True, False), (3, False, True), (1, True, True), (1, False, False)],
)
def test_no_copies_between_a_network_and_its_layers(kernel, residual, last):
    net = Neighbours(kernel, residual)
    net = net.to(memory_format=torch.channels_last) if last else net
    found = []
    for module in (net, convert_norm(copy.deepcopy(net), "en")):
        x = in_layout(torch.randn(4, 6, 8, 10), last)
        found.append([len(large_buffers(code, x.numel())) for code in generated(module, x)])
    with_bn, with_en = found
    # Inductor's BatchNorm is a few element-wise steps and sums, which fuse with their neighbours.
    assert with_bn[0] and all(en <= bn for en, bn in zip(with_en, with_bn, strict=True)), found


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
