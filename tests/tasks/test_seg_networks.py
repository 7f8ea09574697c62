"""Networks of every architecture: sizes, strides, auxiliary heads, normalizers, encoders from checkpoints."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tasks.errors import UserError
from tasks.models import build_network
from tasks.segmentation.networks import Outputs, build_segmenter

ALL = ("deeplabv3", "deeplabv3plus", "psp", "upernet", "unet", "fpn", "digits_unet")
CLASSES = 5


def images(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ALL)
def test_logits_have_the_size_of_the_image(architecture):
    network = build_segmenter(architecture, "resnet18", CLASSES).eval()
    with torch.no_grad():
        for size in ((64, 64), (65, 97), (50, 41)):
            assert network(images(1, 3, *size)).shape == (1, CLASSES, *size)


@pytest.mark.parametrize(
    ("architecture", "stride"), [("deeplabv3", 8), ("deeplabv3plus", 8), ("psp", 8), ("unet", 32)]
)
def test_output_stride(architecture, stride):
    network = build_segmenter(architecture, "resnet18", CLASSES).eval()
    with torch.no_grad():
        features = network.encoder(images(1, 3, 64, 96))
        assert features[-1].shape[1:] == (512, 64 // stride, 96 // stride)
        coarse = network.head(network.decoder(features))
        expected = F.interpolate(coarse, (64, 96), mode="bilinear")
        torch.testing.assert_close(network(images(1, 3, 64, 96)), expected)


def test_padding_is_the_mean_colour_at_the_right_and_the_bottom():
    network = build_segmenter("fpn", "resnet18", CLASSES).eval()
    padded = F.pad(images(1, 3, 50, 41), (0, 23, 0, 14))
    with torch.no_grad():
        torch.testing.assert_close(network(images(1, 3, 50, 41)), network(padded)[..., :50, :41])


@pytest.mark.parametrize("architecture", ALL[:-1])
def test_the_auxiliary_head_is_for_training_alone(architecture):
    network = build_segmenter(architecture, "resnet18", CLASSES, aux=True)
    outputs = network(images(2, 3, 64, 64))
    assert isinstance(outputs, Outputs) and outputs.aux.shape == outputs.logits.shape
    (outputs.logits.square().mean() + 0.4 * outputs.aux.square().mean()).backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert unused == []
    assert isinstance(network.eval()(images(2, 3, 64, 64)), torch.Tensor)


def test_the_auxiliary_head_reads_stage_three():
    network = build_segmenter("deeplabv3", "resnet18", CLASSES, aux=True)
    x = images(2, 3, 64, 64)
    network(x).aux.sum().backward()
    touched = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None}
    assert "layer3" in touched and "layer4" not in touched
    assert network.aux[0].weight.shape == (64, 256, 3, 3)


@pytest.mark.parametrize("norm", ["en", "sn"])
@pytest.mark.parametrize("architecture", ["deeplabv3", "psp", "upernet"])
def test_one_image_with_a_pyramid_level_of_one_pixel_trains(architecture, norm):
    """BatchNorm has no variance there, and raises."""
    network = build_segmenter(architecture, "resnet18", CLASSES, norm, aux=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    target = torch.randint(0, CLASSES, (1, 64, 64))
    for _ in range(2):
        outputs = network(images(1, 3, 64, 64))
        loss = F.cross_entropy(outputs.logits, target) + 0.4 * F.cross_entropy(outputs.aux, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in network.parameters())
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.fixture(scope="module")
def resnet():
    """A classifier of torchvision whose statistics are not those it starts with."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7)
    with torch.no_grad():
        for _ in range(3):
            network(images(4, 3, 64, 64))
    return network.eval()


def features_of(resnet, x):
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        x = layer(x)
    return x


@pytest.mark.parametrize("norm", ["bn", "en"])
def test_an_encoder_computes_what_the_classifier_did(resnet, norm, tmp_path, capsys):
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    path = str(tmp_path / "resnet18.pth")
    network = build_segmenter("unet", "resnet18", CLASSES, norm, encoder_weights=path).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = network.encoder(x)[-1], features_of(resnet, x)
    # In another order of float32 operations, 18 layers deep.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) or norm == "bn"


def checkpoint(path, network, norm, **options):
    """A checkpoint as tasks.classification writes it, as far as its weights go."""
    torch.manual_seed(3)
    classifier = build_network(network, 7, norm, options or None)
    settings = {"network": network, "num_classes": 7, "norm": norm, "norm_options": options or None}
    state = {f"network.{key}": value for key, value in classifier.state_dict().items()}
    content = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 4,
        "state_dict": state,
        "hyper_parameters": settings,
    }
    torch.save(content, path)
    return classifier


@pytest.mark.parametrize(("norm", "options"), [("bn", {}), ("sn", {}), ("en", {"reduction": 16})])
def test_a_checkpoint_of_a_classifier_starts_the_encoder(norm, options, tmp_path):
    classifier = checkpoint(tmp_path / "best.ckpt", "resnet18", norm, **options)
    weights = str(tmp_path / "best.ckpt")
    network = build_segmenter("deeplabv3", "resnet18", CLASSES, norm, options, encoder_weights=weights)
    theirs = classifier.state_dict()
    assert network.encoder.state_dict().keys() == theirs.keys() - {"fc.weight", "fc.bias"}
    for key, value in network.encoder.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_a_checkpoint_of_bn_starts_an_encoder_of_en(tmp_path):
    classifier = checkpoint(tmp_path / "best.ckpt", "resnet18", "bn").eval()
    weights = str(tmp_path / "best.ckpt")
    network = build_segmenter("unet", "resnet18", CLASSES, "en", encoder_weights=weights).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        # In another order of float32 operations, 18 layers deep.
        torch.testing.assert_close(network.encoder(x)[-1], features_of(classifier, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        (("resnet18", "sn"), ("resnet18", "en"), "encoder_weights: .*is of norm sn .*expected bn, or en"),
        (("resnet34", "bn"), ("resnet18", "bn"), "is of network resnet34, expected resnet18"),
        (
            ("resnet18", "bn"),
            ("tu-resnet18", "bn"),
            "expected an encoder with the name of a network of torch",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(made, wanted, message, tmp_path):
    checkpoint(tmp_path / "best.ckpt", *made)
    encoder, norm = wanted
    with pytest.raises(UserError, match=message):
        build_segmenter("unet", encoder, CLASSES, norm, encoder_weights=str(tmp_path / "best.ckpt"))


def test_names_that_do_not_fit_are_listed(resnet, tmp_path):
    state = {key.replace("layer4", "layer9"): value for key, value in resnet.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model.encoder_weights: .*missing: .*layer4\.0\.conv1\.weight"):
        build_segmenter("unet", "resnet18", CLASSES, encoder_weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("deeplab", "resnet18"), {}, r"network: .*got 'deeplab' \(did you mean deeplabv3"),
        (("unet", "resnet81"), {}, r"encoder: unknown encoder 'resnet81' \(did you mean resnet18"),
        (("unet", "tu-nothing"), {}, "unknown encoder 'tu-nothing'"),
        (("digits_unet", ""), {"aux": True}, "aux_weight: expected 0 for digits_unet"),
        (
            ("unet", "resnet18"),
            {"norm": "sn", "norm_options": {"hidden": 3}},
            "norm 'sn' has no option 'hidden'",
        ),
        (
            ("unet", "resnet18"),
            {"norm": "en", "norm_options": {"reduction": 0}},
            "norm_options for norm 'en'",
        ),
        (("deeplabv3", "vgg11"), {}, "vgg11 does not go with DeepLabV3"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, options, message):
    with pytest.raises(UserError, match=message):
        build_segmenter(*arguments, CLASSES, **options)
