"""Every memory layout of the input and of the upstream gradient gives what contiguous tensors give."""

import pytest
import torch

from exemplar_norm import backend
from tests.layers.layer_cases import assert_same_gradients, layer_gradients, small_case

# Only the order of float64 sums depends on the layout.
TOL = 1e-11
SHAPES = {2: (4, 6, 3, 5), 3: (3, 6, 2, 3, 4)}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def make(layout: str, dims: int) -> torch.Tensor:
    """A random tensor of the test's shape in the given layout."""
    shape = SHAPES[dims]
    N, C, *spatial = shape
    if layout == "contiguous":
        return random(*shape)
    if layout == "channels_last":
        return random(*shape).contiguous(memory_format=CHANNELS_LAST[dims])
    if layout == "expanded-scalar":
        return random(1).view([1] * len(shape)).expand(shape)
    if layout == "expanded-batch":
        return random(1, *shape[1:]).expand(shape)
    if layout == "expanded-map":
        return random(N, C, *[1] * dims).expand(shape)
    if layout == "transposed-map":
        return (
            random(N, C, *spatial[::-1]).transpose(2, -1)
            if dims == 2
            else random(N, C, spatial[2], spatial[1], spatial[0]).transpose(2, 4)
        )
    if layout == "transposed-batch":
        return random(C, N, *spatial).transpose(0, 1)
    if layout == "sliced-map":
        return random(N, C, *spatial[:-1], 2 * spatial[-1])[..., 1::2]
    if layout == "sliced-channels":
        return random(N, 2 * C, *spatial)[:, C:]
    if layout == "sliced-channels_last":
        wide = random(N, 2 * C, *spatial).contiguous(memory_format=CHANNELS_LAST[dims])
        return wide[:, ::2]
    if layout == "offset":
        return random(N * C * torch.Size(spatial).numel() + 1)[1:].view(shape)
    raise AssertionError(layout)


LAYOUTS = [
    "contiguous",
    "channels_last",
    "expanded-scalar",
    "expanded-batch",
    "expanded-map",
    "transposed-map",
    "transposed-batch",
    "sliced-map",
    "sliced-channels",
    "sliced-channels_last",
    "offset",
]
DIMS = pytest.mark.parametrize("dims", [2, 3], ids=["2d", "3d"])


@pytest.mark.parametrize("kind", ["en", "sn"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("x_layout", LAYOUTS)
@DIMS
def test_every_pair_of_layouts(dims, x_layout, training, kind):
    layer = small_case(kind, dims=dims).build(training=training)
    x = make(x_layout, dims)
    for upstream_layout in LAYOUTS:
        upstream = make(upstream_layout, dims)
        with backend("reference"):
            want, want_grads = layer_gradients(layer, x.contiguous(), upstream.contiguous())
        for name in ("eager", "reference"):
            with backend(name):
                got, got_grads = layer_gradients(layer, x, upstream)
            what = f"{name}, upstream {upstream_layout}"
            torch.testing.assert_close(
                got, want, rtol=TOL, atol=TOL, msg=lambda text, what=what: f"{what}: {text}"
            )
            try:
                # With an input that is constant some gradients cancel to nothing out of O(1) terms.
                assert_same_gradients(got_grads, want_grads, TOL, floor=1)
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from None


@pytest.mark.parametrize("name", ["eager", "auto", "reference"])
@pytest.mark.parametrize("kind", ["en", "sn"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@DIMS
def test_channels_last_stays_channels_last(dims, training, kind, name):
    layer = small_case(kind, dims=dims).build(torch.float32, training)
    x = make("channels_last", dims).float()
    with backend(name):
        y = layer(x)
    assert y.is_contiguous(memory_format=CHANNELS_LAST[dims])
    assert not y.is_contiguous()


@pytest.mark.parametrize("loss", ["sum", "mean", "one-sample", "one-channel"])
def test_upstream_gradients_as_autograd_makes_them(loss):
    """Losses whose gradient arrives expanded or mostly zero."""
    layer = small_case("en").build()
    reduce = {
        "sum": torch.sum,
        "mean": torch.mean,
        "one-sample": lambda y: (y[1] ** 2).sum(),
        "one-channel": lambda y: y[:, 2].sum(),
    }[loss]
    x = make("contiguous", 2)
    grads = {}
    for name in ("reference", "eager", "auto"):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        with backend(name):
            reduce(layer(leaf)).backward()
        grads[name] = {"x": leaf.grad} | {key: p.grad for key, p in layer.named_parameters()}
    for name in ("eager", "auto"):
        assert_same_gradients(grads[name], grads["reference"], TOL)
