"""Passes over X: how many results of its size a layer's eager form writes in training."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import saved_bytes
from exemplar_norm import ExemplarNorm2d

# In one piece each. A plane of channels-last X takes plain operations where small, native kernels else.
CASES = {
    "nchw": ((4, 8, 6, 6), torch.contiguous_format),
    "nhwc-small": ((4, 8, 6, 6), torch.channels_last),
    "nhwc": ((2, 64, 40, 40), torch.channels_last),
}
# (forward, backward): Y; A·X + B and then A ⊙ dY in place in dX. Beside these,
WRITES = {
    "nchw": (1 + 1, 2),  # an output of native_group_norm, whose statistics alone are used
    "nhwc-small": (1 + 2, 2 + 2),  # (X − m)² in two steps, and (X − m) ⊙ dY in two
    "nhwc": (1, 2),
}


class Written(TorchDispatchMode):
    """Counts results of X's size below autograd, by whether they are new memory or written in place."""

    def __init__(self, x):
        super().__init__()
        self.size, self.new, self.in_place = x.numel(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        several = results if isinstance(results, (tuple, list)) else (results,)
        for result, declared in zip(several, function._schema.returns, strict=False):
            if isinstance(result, torch.Tensor) and result.numel() >= self.size:
                alias = declared.alias_info
                # A view has an alias that is not written; memory that is only reserved holds no result yet.
                self.in_place += alias is not None and alias.is_write
                self.new += alias is None and "empty" not in function._schema.name
        return results

    @property
    def total(self):
        return self.new + self.in_place


def step(case, fused=False, then=None):
    """What a forward and a backward pass write, and the bytes that are kept between them."""
    shape, layout = CASES[case]
    layer = ExemplarNorm2d(shape[1])
    layer.relu = fused
    x, dy = (torch.randn(shape).to(memory_format=layout) for _ in range(2))
    x.requires_grad_()
    with Written(x) as forward:
        y = layer(x) if then is None else then(layer(x))
    with Written(x) as backward:
        torch.autograd.grad(y, [x, *layer.parameters()], dy)
    kept = saved_bytes(lambda: layer(x) if then is None else then(layer(x)), list(layer.parameters()))
    return forward, backward, kept, x.nbytes


@pytest.mark.parametrize("case", CASES)
def test_results_of_the_size_of_x(case):
    forward, backward, _, _ = step(case)
    assert forward.total <= WRITES[case][0] and backward.total <= WRITES[case][1]


@pytest.mark.parametrize("case", CASES)
def test_a_fused_relu_takes_less_memory_for_one_pass_more(case):
    forward, backward, kept, size = step(case, fused=True)
    plain_forward, plain_backward, plain_kept, _ = step(case, then=torch.relu)
    # In place in Y, so that no result is new; and the backward pass writes Y once more instead of keeping it.
    assert forward.total == plain_forward.total and forward.new == plain_forward.new - 1
    assert backward.total == plain_backward.total + 1
    # Up to 10 % of X are numbers of each sample and channel.
    assert kept <= plain_kept - 0.9 * size
