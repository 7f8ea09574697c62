"""Networks that start from pretrained weights: the same function, or one line that says why not."""

import copy
import os
import socket
import time
import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from exemplar_norm import convert_norm
from tasks import weight_files
from tasks.errors import UserError
from tasks.networks import Architecture, build_native
from tasks.pretrained import load_pretrained

RESNET18 = torchvision.models.ResNet18_Weights.IMAGENET1K_V1


def build(network, weights, norm="en", classes=7, **options):
    """What `build_network` does with weights."""

    def convert(network, preserve):
        keep = norm == "bn" and not options
        return network if keep else convert_norm(network, norm, preserve=preserve, **options)

    architecture = Architecture(network, classes, norm, options or None)
    return load_pretrained(build_native(network, classes), architecture, str(weights), convert)


@torch.no_grad()
def randomize(network):
    """Random γ, β and averages, as of a trained network; γ with 8 bits, so that 3·γ is exact in float32."""
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5).mul_(256).round_().div_(256)
        elif value.dim() == 1:
            value.normal_(std=0.2)
    return network


def assert_same_function(left, right, training, size=64):
    """Both in float64: a conversion costs rounding alone."""
    left, right = (copy.deepcopy(network).double().train(training) for network in (left, right))
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    outputs = []
    for network in (left, right):
        torch.manual_seed(1)  # dropout
        outputs.append(network(images))
    # Rounding of float64 through twenty to a hundred layers; the outputs are of order 1.
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)
    for name, value in left.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(right.get_buffer(name), value, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(5)
    return randomize(torchvision.models.resnet18(num_classes=7))


@pytest.fixture
def resnet18_file(resnet18, tmp_path):
    torch.save(resnet18.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def own_checkpoint(path, network, norm, classes=7, name="digits_resnet", norm_options=None):
    """A checkpoint as Lightning writes it for the classification module."""
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    settings = {"network": name, "num_classes": classes, "norm": norm, "norm_options": norm_options}
    torch.save(
        {
            "epoch": 3,
            "global_step": 40,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {**state, "loss.weight": torch.ones(classes)},
            "hyper_parameters": {**settings, "lr": 0.1},
        },
        path,
    )
    return path


# --- the native network's weights


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("norm", ["bn", "en", "cbn"])
def test_a_torchvision_file_keeps_the_function(resnet18, resnet18_file, norm, training, capsys):
    network = build("resnet18", resnet18_file, norm)
    assert_same_function(resnet18, network, training)
    assert capsys.readouterr().out == ""


def test_a_norm_that_computes_something_else_takes_the_parameters_and_says_so(
    resnet18, resnet18_file, capsys
):
    network = build("resnet18", resnet18_file, "gn")
    assert isinstance(network.bn1, nn.GroupNorm)
    assert torch.equal(network.bn1.weight, resnet18.bn1.weight)
    assert torch.equal(network.layer4[1].conv2.weight, resnet18.layer4[1].conv2.weight)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "'gn', which computes something else" in out


def test_a_head_of_other_classes_starts_fresh(resnet18, resnet18_file, capsys):
    network = build("resnet18", resnet18_file, "en", classes=10)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "7 classes there, 10 here: fc.weight, fc.bias start fresh" in out
    assert network.fc.weight.shape == (10, 512)
    before = copy.deepcopy(resnet18)
    before.fc = network.fc = nn.Identity()
    assert_same_function(before, network, training=False)


@pytest.mark.parametrize(
    ("wrap", "prefix"), [(None, "module."), ("state_dict", "module._orig_mod."), ("model_ema", "")]
)
def test_what_training_scripts_wrap_around_the_weights(resnet18, tmp_path, wrap, prefix):
    state = {prefix + key: value for key, value in resnet18.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "wrapped.pth")
    network = build("resnet18", tmp_path / "wrapped.pth", "bn")
    assert torch.equal(network.fc.weight, resnet18.fc.weight)


def test_an_old_densenet_file_with_dots_in_its_names_and_no_counters(tmp_path):
    network = randomize(torchvision.models.densenet121(num_classes=7))
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121.pth")
    assert_same_function(network, build("densenet121", tmp_path / "densenet121.pth"), training=False)


def test_googlenet_without_its_auxiliary_heads_and_with_its_own_input_normalisation(tmp_path, capsys):
    # What torchvision's googlenet(weights=…) is: no auxiliary heads, and inputs converted inside.
    network = torchvision.models.googlenet(
        num_classes=7, aux_logits=False, transform_input=True, init_weights=True
    )
    torch.save(randomize(network).state_dict(), tmp_path / "googlenet.pth")
    built = build("googlenet", tmp_path / "googlenet.pth")
    out = capsys.readouterr().out
    assert "aux1, which starts fresh" in out and "aux2, which starts fresh" in out
    assert_same_function(network, built, training=False)
    assert len(built.train()(torch.randn(2, 3, 64, 64))) == 3


# --- timm


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_timm_file_keeps_the_function(tmp_path, suffix):
    import timm
    from safetensors.torch import save_file

    network = randomize(timm.create_model("resnet10t", num_classes=7))
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pth" else save_file)(network.state_dict(), path)
    for training in (False, True):
        assert_same_function(network, build("timm/resnet10t", path), training)


def test_timm_networks_by_name():
    assert build_native("timm/resnet10t", 3).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(UserError, match=r"timm has no network 'resnt50' \(did you mean timm/resnet50"):
        build_native("timm/resnt50", 3)
    with pytest.raises(UserError, match="timm has no network 'hf-hub:a/b'"):
        build_native("timm/hf-hub:a/b", 3)
    with pytest.raises(UserError, match=r"unknown network 'resnt50' \(did you mean .*resnet50.*timm/<name>"):
        build_native("resnt50", 3)


# --- checkpoints of this project


@pytest.mark.parametrize(("theirs", "ours"), [("en", "en"), ("sn", "sn"), ("gn", "gn"), ("bn", "en")])
def test_an_own_checkpoint_keeps_the_function(tmp_path, theirs, ours):
    network = randomize(build_native("digits_resnet", 7))
    if theirs != "bn":
        convert_norm(network, theirs)
        torch.nn.init.normal_(network.fc.weight)
        with torch.no_grad():  # gates that do something
            for name, parameter in network.named_parameters():
                if "gate" in name or "mean_weight" in name:
                    parameter.normal_(std=0.5)
    path = own_checkpoint(tmp_path / "best.ckpt", network, theirs)
    built = build("digits_resnet", path, ours)
    for training in (False, True):
        assert_same_function(network, built, training, size=32)


def test_an_own_checkpoint_for_other_classes(tmp_path, capsys):
    network = convert_norm(build_native("digits_resnet", 7), "en")
    path = own_checkpoint(tmp_path / "best.ckpt", network, "en")
    built = build("digits_resnet", path, "en", classes=4)
    assert "7 classes there, 4 here: fc.weight, fc.bias start fresh" in capsys.readouterr().out
    assert torch.equal(built.layer1[0].bn1.gate.fc1.weight, network.layer1[0].bn1.gate.fc1.weight)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    network = convert_norm(build_native("digits_resnet", 7), "sn")
    path = own_checkpoint(tmp_path / "best.ckpt", network, "sn")
    with pytest.raises(UserError, match=r"is of norm sn .*expected bn, or en with options"):
        build("digits_resnet", path, "en")
    with pytest.raises(UserError, match="is of network digits_resnet, expected resnet18"):
        build("resnet18", path, "sn")
    # The same names and shapes, in another order.
    options = {"normalizers": ["ln", "in", "bn"]}
    path = own_checkpoint(tmp_path / "best.ckpt", network, "sn", norm_options=options)
    with pytest.raises(UserError, match=r"is of norm sn with options .*'ln', 'in', 'bn'"):
        build("digits_resnet", path, "sn")


# --- what cannot be used


def test_everything_that_differs_is_listed(resnet18, tmp_path):
    state = resnet18.state_dict()
    state["extra"] = state.pop("layer1.0.bn1.weight")
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "other.pth")
    for norm in ("bn", "en"):
        with pytest.raises(UserError) as caught:
            build("resnet18", tmp_path / "other.pth", norm)
        for part in (
            "other.pth",
            "1 missing: layer1.0.bn1.weight",
            "1 unexpected: extra",
            "conv1.weight (expected (64, 3, 7, 7), got (64, 3, 3, 3))",
        ):
            assert part in str(caught.value)
        assert "gate" not in str(caught.value)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path):
    torch.save({"conv1.weight": Harmful(str(tmp_path / "ran"))}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match=r"harmful\.pth .*holds code, which is not run"):
        build("resnet18", tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights(tmp_path, resnet18_file):
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    (tmp_path / "short.pth").write_bytes(resnet18_file.read_bytes()[:5000])
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(
        {"pytorch-lightning_version": "2", "state_dict": {"a": torch.ones(1)}}, tmp_path / "other.ckpt"
    )
    for name, words in {
        "text.pth": "is not a checkpoint",
        "text.safetensors": "is not a safetensors file",
        "short.pth": "is not a checkpoint, or one cut short",
        "nothing.pth": "holds no state dict",
        "list.pth": "holds no state dict",
        "other.ckpt": "not of a classifier",
        ".": "which is a folder",
        "nowhere.pth": "which does not exist",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            build("resnet18", tmp_path / name)
        assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(UserError) as caught:
        build("resnet50", "IMAGENET1K_V3")
    assert "one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT (for resnet50), or a file" in str(caught.value)
    assert "did you mean IMAGENET1K_V" in str(caught.value)
    with pytest.raises(UserError, match="expected a file of weights, got 'DEFAULT'"):
        build("digits_resnet", "DEFAULT")


# --- weights by name


@pytest.fixture
def download(monkeypatch):
    """Answer torchvision's downloads with download(url, **options)."""
    return lambda answer: monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", answer)


def test_weights_by_name(download, capsys):
    network = randomize(torchvision.models.resnet18())
    asked = {}

    def answer(url, **options):
        asked.update(options, url=url)
        return network.state_dict()

    download(answer)
    built = build("resnet18", "DEFAULT", classes=1000)
    assert asked["url"] == RESNET18.url
    assert asked["weights_only"] is True and asked["check_hash"] is True
    assert_same_function(network, built, training=False)
    assert capsys.readouterr().out == ""


def assert_not_fetched(words):
    start = time.perf_counter()
    before = socket.getdefaulttimeout()
    with pytest.raises(UserError, match="DEFAULT of resnet18 cannot be fetched from .*" + words) as caught:
        build("resnet18", "DEFAULT")
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() == before
    # Within seconds: the network takes about one to be built, a server's silence is bounded below.
    assert time.perf_counter() - start < 20


def test_no_network(download):
    def answer(url, **options):
        raise urllib.error.URLError("Name or service not known")

    download(answer)
    assert_not_fetched("Name or service not known.*download it elsewhere and name the file")


def test_a_server_that_refuses_and_one_that_is_silent(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weight_files, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet18-f37072fd.pth"
        monkeypatch.setattr(RESNET18.value, "url", url)
        assert_not_fetched("timed out")
    assert_not_fetched("refused")
