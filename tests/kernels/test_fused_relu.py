"""Layers fused with the ReLU behind them: what unfused networks compute, from fewer bytes."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.measure import saved_bytes
from exemplar_norm import ExemplarNorm2d, backend, convert_norm
from exemplar_norm.base import MomentLayer
from tests.layers.layer_cases import assert_same_gradients, layer_gradients, randomise, small_case

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# float64, the same formula in another order.
TOL = 1e-10


class Unfused(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, residual=None):
        y = self.layer(x)
        return torch.relu(y if residual is None else y + residual)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["eager", "reference"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["relu", "residual-relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["en", "sn"])
@pytest.mark.parametrize("mean", [0, 1e3], ids="mean-{:g}".format)
def test_layer_equals_layer_then_relu(mean, kind, training, with_residual, name, layout):
    layer = small_case(kind).build(training=training)
    twin = Unfused(copy.deepcopy(layer))
    layer.relu = True
    x, residual, upstream = torch.randn(3, 5, 6, 4, 7).double()
    x, residual = (t.contiguous(memory_format=FORMATS[layout]) for t in (x, residual))
    leaves = [[(x + mean).requires_grad_(), residual.clone().requires_grad_()] for _ in range(2)]
    with backend(name):
        inputs = [pair if with_residual else pair[:1] for pair in leaves]
        outputs = [layer(*inputs[0]), twin(*inputs[1])]
    torch.testing.assert_close(*outputs, rtol=TOL, atol=TOL)
    assert outputs[0].stride() == x.stride()
    for y in outputs:
        y.backward(upstream)
    for got, want in zip([*leaves[0], *layer.parameters()], [*leaves[1], *twin.parameters()], strict=True):
        if want.grad is not None:
            # A mean of 1e3 costs the statistics three of sixteen digits.
            torch.testing.assert_close(got.grad, want.grad, rtol=100 * TOL, atol=100 * TOL)


@pytest.mark.parametrize("layout", FORMATS)
def test_saved_bytes(layout):
    x, r = (torch.randn(8, 32, 28, 28).to(memory_format=FORMATS[layout]).requires_grad_() for _ in range(2))
    layer = randomise(ExemplarNorm2d(32))
    layer.relu = True
    bn = nn.BatchNorm2d(32)
    ours, theirs = list(layer.parameters()), list(bn.parameters())
    alone = saved_bytes(lambda: layer(x), ours) / saved_bytes(lambda: torch.relu(bn(x)), theirs)
    summed = saved_bytes(lambda: layer(x, r), ours) / saved_bytes(lambda: torch.relu(bn(x) + r), theirs)
    # X against X and the ReLU's output; behind a sum the output is needed either way. Parameters left out, up
    # to 5 % of X is what (N, C) numbers come to.
    assert alone <= 0.55
    assert summed <= 1.05


def test_a_residual_of_another_dtype_or_shape_does_what_a_sum_does():
    layer = small_case("en").build(torch.float32)
    twin = Unfused(copy.deepcopy(layer))
    layer.relu = True
    x = torch.randn(3, 6, 4, 5)
    for residual in (torch.randn(3, 6, 1, 1), torch.randn(3, 6, 4, 5, dtype=torch.float64)):
        assert torch.equal(layer(x, residual), twin(x, residual))


def resnet(kind):
    return torchvision.models.resnet.ResNet(kind, [1, 1, 1, 1], num_classes=5)


def timm_resnet():
    import timm

    return timm.create_model("resnet10t", num_classes=5)


def smp_unet():
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(16, 8, 8), classes=5)


# Network → how many of its layers are fused: the stem, and each layer of a block but the one beside the sum.
NETWORKS = {
    "basic": (lambda: resnet(torchvision.models.resnet.BasicBlock), 1 + 4 * 2),
    "bottleneck": (lambda: resnet(torchvision.models.resnet.Bottleneck), 1 + 4 * 3),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), 2 + 3 * 3 + 2 * (3 + 7 + 3)),
    "smp-unet": (smp_unet, None),
    "timm": (timm_resnet, None),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_network_equals_unfused(network):
    make, count = NETWORKS[network]
    plain = convert_norm(make().double(), "en", reduction=8)
    fused = convert_norm(copy.deepcopy(plain), "en", fuse=True)
    found = sum(m.relu for m in fused.modules() if isinstance(m, MomentLayer))
    assert found == count if count else found >= 8
    assert fused.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 64, 64).double()
    upstream = torch.randn_like(plain.eval()(x))
    for training in (True, False):
        want, want_grads = layer_gradients(plain.train(training), x, upstream)
        got, got_grads = layer_gradients(fused.train(training), x, upstream)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
        # Through up to 20 layers, of 4 positions at the end.
        assert_same_gradients(got_grads, want_grads, 1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-8, atol=1e-8)


def test_copies_of_a_fused_network():
    fused = convert_norm(resnet(torchvision.models.resnet.Bottleneck), "en", fuse=True).eval()
    assert isinstance(fused.layer1[0], torchvision.models.resnet.Bottleneck)
    x = torch.randn(2, 3, 32, 32)
    want = fused(x)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(twin.layer1[0]).forward is not torchvision.models.resnet.Bottleneck.forward
        assert twin.layer1[0].conv1.weight is not fused.layer1[0].conv1.weight
        assert torch.equal(twin(x), want)


def test_a_second_conversion_changes_nothing_and_another_is_refused():
    fused = convert_norm(resnet(torchvision.models.resnet.BasicBlock), "en", fuse=True).eval()
    x = torch.randn(2, 3, 32, 32)
    want = fused(x)
    assert torch.equal(convert_norm(fused, "en", fuse=True)(x), want)
    with pytest.raises(ValueError, match="a fused ReLU"):
        convert_norm(fused, "en", reduction=2)


def test_what_cannot_be_seen_is_left_alone(caplog):
    shared = ExemplarNorm2d(4)
    hooked = ExemplarNorm2d(4)
    hooked.register_forward_hook(lambda *_: None)
    for net in (
        nn.Sequential(shared, nn.ReLU(), shared, nn.Conv2d(4, 4, 1)),
        nn.Sequential(hooked, nn.ReLU()),
        nn.Sequential(ExemplarNorm2d(4), nn.LeakyReLU()),
    ):
        convert_norm(net, "en", fuse=True)
        assert not any(m.relu for m in net.modules() if isinstance(m, MomentLayer))
    assert "found no layer" in caplog.text
