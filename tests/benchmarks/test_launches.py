"""Operations that a layer launches, against another way to count them."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.candidates import CANDIDATES
from benchmarks.launches import launches, on_device, recorded_kernels

EAGER = [name for name in CANDIDATES if "compiled" not in name]
NOT_COUNTED = ("empty", "new_empty", "_unsafe_view", "_local_scalar_dense", "promote_types", "result_type")


class Dispatched(TorchDispatchMode):
    """Counts what is dispatched below autograd and is neither a view nor listed above."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        name = function._schema.name.removeprefix("aten::")
        self.number += not is_view and not name.startswith(NOT_COUNTED)
        return function(*args, **(kwargs or {}))


def case(name, layout=torch.contiguous_format):
    torch.manual_seed(0)
    x, dy = (torch.randn(4, 32, 6, 6).to(memory_format=layout) for _ in range(2))
    return CANDIDATES[name](32), x.requires_grad_(), dy


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", EAGER)
def test_counts_what_autograd_dispatches(name, layout):
    layer, x, dy = case(name, layout)
    with Dispatched() as forward:
        y = layer(x)
    with Dispatched() as backward:
        torch.autograd.grad(y, [x, *layer.parameters()], dy)
    assert launches(layer, x, dy) == {
        "launches_forward": forward.number,
        "launches_backward": backward.number,
    }


def test_batch_norm_counts_its_batches_and_normalizes():
    assert launches(*case("BN")) == {"launches_forward": 2, "launches_backward": 1}


@pytest.mark.slow
def test_counts_what_inductor_built():
    layer, x, dy = case("BN compiled")
    with recorded_kernels():
        torch.autograd.grad(layer(x), x, dy)
        counted = launches(layer, x, dy)
    # A loop over X for the statistics and one for the output, in one kernel or in two.
    assert 1 <= counted["launches_forward"] <= 2 and 1 <= counted["launches_backward"] <= 2
    layer, x, dy = case("EN in a compiled network")
    with recorded_kernels():
        torch.autograd.grad(layer(x), x, dy)
        counted = launches(layer, x, dy)
    eager = launches(*case("EN eager"))
    # Generated kernels, and the products of the gate between them.
    assert all(3 < counted[way] < eager[way] / 2 for way in counted)


def test_a_gpu_is_given_kernels_copies_and_fills():
    def event(device, named=False):
        return SimpleNamespace(device_type=device, is_user_annotation=named)

    gpu = DeviceType.CUDA
    assert on_device([event(DeviceType.CPU), event(gpu), event(gpu), event(gpu, named=True)]) == 2
