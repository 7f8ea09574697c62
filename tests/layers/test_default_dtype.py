"""What PyTorch would make new tensors of is no matter of the layers."""

import pytest
import torch

from tests.layers.layer_cases import layer_gradients, small_case


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
# A sample above and one below what native kernels take.
@pytest.mark.parametrize("shape", [(2, 6, 112, 112), (3, 6, 5, 4)], ids=["large", "small"])
def test_the_default_dtype_changes_nothing(shape, dtype, layout):
    layer = small_case("en").build(torch.float32)
    x = torch.randn(shape).to(dtype, memory_format=layout)
    upstream = torch.randn_like(x)
    want, want_grads = layer_gradients(layer, x, upstream)
    default = torch.get_default_dtype()
    for other in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(other)
        try:
            got, grads = layer_gradients(layer, x, upstream)
        finally:
            torch.set_default_dtype(default)
        assert torch.equal(got, want)
        assert all(torch.equal(grads[name], want_grads[name]) for name in want_grads)
