"""Classifiers out of runs: loaded in three lines, exported to safetensors and ONNX."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from task_paths import REPOSITORY

from tasks.classification import export as exporting
from tasks.classification import load_classifier
from tasks.classification.digits import DigitsDataModule
from tasks.classification.inputs import Inputs
from tasks.errors import UserError
from tasks.models import build_network

pytestmark = pytest.mark.slow

NAMES = ["tench", "müller's owl", "<b>shark</b>"]
INPUTS = Inputs(NAMES, [0.5, 0.4, 0.3], [0.25, 0.2, 0.1], [20], [16, 16], "bilinear")
METRICS = """epoch,step,test/top1,train/loss,val/loss,val/top1
0,9,,2.30,,
0,9,,,2.25,0.25
1,19,,,1.75,0.625
2,29,,,1.5,0.5
2,29,0.59375,,,
"""


def trained(network, num_classes=3, norm="en", norm_options=None):
    """A network with the parameters of a trained one: nothing at its start value."""
    built = build_network(network, num_classes, norm, norm_options)
    with torch.no_grad():
        for name, value in built.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() < 3 and value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.2)
    return built.eval()


def write_checkpoint(path, built, network="digits_resnet", norm="en", norm_options=None, inputs=INPUTS):
    """A checkpoint as Lightning writes it for the classification module."""
    settings = {"network": network, "num_classes": 3, "norm": norm, "norm_options": norm_options, "lr": 0.1}
    content = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"network.{key}": value for key, value in built.state_dict().items()},
        "hyper_parameters": settings,
        **({"inputs": asdict(inputs)} if inputs else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture
def network():
    return trained("digits_resnet")


@pytest.fixture
def run(network, tmp_path):
    """A run folder with one checkpoint."""
    folder = tmp_path / "runs" / "digits"
    write_checkpoint(folder / "checkpoints" / "best.ckpt", network)
    (folder / "config.yaml").write_text(
        "# python -m tasks.classification fit --config a.yaml\nname: digits\n"
    )
    (folder / "metrics.csv").write_text(METRICS)
    return folder


def images(count=2, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


# --- loading


@pytest.mark.parametrize("path", [".", "checkpoints/best.ckpt"])
def test_a_classifier_of_a_run(run, network, path):
    model = load_classifier(run / path)
    assert not model.training and model.class_names == NAMES
    assert model.config["norm"] == "en" and model.config["mean"] == [0.5, 0.4, 0.3]
    with torch.no_grad():
        probabilities = model(images())
        assert torch.equal(probabilities, torch.softmax(network(images()), dim=1))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))


def test_the_last_checkpoint_where_there_is_no_best(run):
    (run / "checkpoints/best.ckpt").rename(run / "checkpoints/last.ckpt")
    assert load_classifier(str(run)).class_names == NAMES


def test_preprocessing_by_hand():
    inputs = Inputs(["a"], [0.5, 0.4, 0.3], [0.25, 0.2, 0.1], [4], [2, 2], "bilinear")
    # 8 × 16 with a bright right half: the shorter side to 4, so 4 × 8; the central 2 × 2 straddles the edge.
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    got = inputs.preprocess()(Image.fromarray(pixels))
    assert type(got) is torch.Tensor and got.shape == (3, 2, 2) and got.dtype == torch.float32
    # Antialiasing by 2 is a triangle over ±2 pixels, weights 1/8 3/8 3/8 1/8: an eighth comes over the edge.
    levels = [round(255 / 8) / 255, round(255 * 7 / 8) / 255]
    for channel, (mean, std) in enumerate(zip(inputs.mean, inputs.std, strict=True)):
        want = torch.tensor([(level - mean) / std for level in levels])
        torch.testing.assert_close(got[channel], want.expand(2, 2))  # the default tolerances of float32
    assert torch.equal(inputs.preprocess()(torch.from_numpy(pixels).permute(2, 0, 1)), got)
    for mode, level in (("L", 200), ("RGBA", (200, 200, 200, 255))):
        grey = inputs.preprocess()(Image.new(mode, (5, 9), level))
        want = (200 / 255 - torch.tensor(inputs.mean)) / torch.tensor(inputs.std)
        torch.testing.assert_close(grey, want[:, None, None].expand(3, 2, 2))


def test_inputs_are_read_off_the_data_module():
    data = DigitsDataModule(image_size=16)
    inputs = Inputs.of(data)
    assert asdict(inputs) == {
        "class_names": [str(digit) for digit in range(10)],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "resize": [16, 16],
        "crop": None,
        "interpolation": "bilinear",
    }
    assert inputs.size == (16, 16)
    picture = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    want = picture
    for step in data.image_steps():
        want = step(want)
    torch.testing.assert_close(inputs.preprocess()(picture), want)  # the default tolerances of float32


def test_paths_that_hold_no_classifier(tmp_path, network):
    plain = tmp_path / "plain.pth"
    torch.save(network.state_dict(), plain)
    old = write_checkpoint(tmp_path / "old.ckpt", network, inputs=None)
    other = write_checkpoint(tmp_path / "other.ckpt", trained("digits_resnet", norm="sn"))
    for path, words in {
        tmp_path / "nowhere": "expected a run folder, a checkpoint or an exported folder.*does not exist",
        tmp_path: "holds no checkpoint",
        plain: "got a plain state dict",
        old: "names its classes and preprocessing, got none of class_names, mean",
        other: r"other\.ckpt: checkpoint does not fit the network: .* unexpected",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            load_classifier(path)
        assert "\n" not in str(caught.value)


def test_the_package_imports_nothing_heavy():
    process = subprocess.run(
        [sys.executable, "-c", "import tasks.classification, sys; print('torch' in sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "False\n"


# --- safetensors and the card


def test_a_safetensors_export_is_the_classifier(run, network):
    folder = exporting.export(run / "checkpoints/best.ckpt")
    assert folder == run / "export-best"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "network": "digits_resnet",
        "num_classes": 3,
        "norm": "en",
        "norm_options": None,
        "epoch": 1,
        **asdict(INPUTS),
    }
    for path in (folder, folder / "model.safetensors"):
        model = load_classifier(path)
        assert model.config == config
        for name, value in network.state_dict().items():
            assert torch.equal(model.network.state_dict()[name], value), name
    moved = shutil.copytree(folder, run.parent / "elsewhere")
    assert torch.equal(load_classifier(moved)(images()), load_classifier(run)(images()))
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_the_model_card(run):
    card = (exporting.export(run / "checkpoints/best.ckpt", run / "out") / "README.md").read_text()
    for part in (
        "# digits_resnet with en, 3 classes",
        f'model = load_classifier("{run / "out"}")',
        "(N, 3, 16, 16), RGB in [0, 1] less the mean (0.5, 0.4, 0.3)",
        "resized to\n20 on its shorter side (bilinear), the centre of 16 × 16 cropped",
        "normalizers = ('in', 'ln', 'bn'), reduction = 32",
        "| 5 | `ExemplarNorm2d(16, in+ln+bn",
        "| val/top1 | 0.6250 |",
        "| val/loss | 1.7500 |",
        "| test/top1 | 0.5938 |",
        "python -m tasks.classification fit --config a.yaml",
        "MIT",
    ):
        assert part in card, part
    assert "{" not in card and "train/loss" not in card and "model.onnx" not in card
    code = card.partition("```python\n")[2].partition("```")[0]
    scope = {"image": Image.new("RGB", (30, 40))}
    exec(code, scope)
    assert scope["probabilities"].shape == (1, 3)


def test_the_card_of_the_last_checkpoint_has_no_metrics_of_the_best(run):
    shutil.copy(run / "checkpoints/best.ckpt", run / "checkpoints/last.ckpt")
    card = (exporting.export(run / "checkpoints/last.ckpt") / "README.md").read_text()
    assert "val/top1" in card and "test/top1" not in card


def test_a_checkpoint_outside_a_run(tmp_path, network):
    path = write_checkpoint(tmp_path / "some.ckpt", network)
    folder = exporting.export(path)
    assert folder == tmp_path / "export-some"
    assert (folder / "README.md").read_text().count("Not known.") == 2


def test_an_existing_folder_is_refused_and_a_failed_export_leaves_nothing(run, monkeypatch):
    (run / "export-best").mkdir()
    with pytest.raises(UserError, match="export-best exists already"):
        exporting.export(run / "checkpoints/best.ckpt")
    assert list((run / "export-best").iterdir()) == []

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(exporting._WRITERS, "onnx", full_disk)
    before = sorted(run.rglob("*"))
    with pytest.raises(OSError, match="No space"):
        exporting.export(run / "checkpoints/best.ckpt", run / "new", ["safetensors", "onnx"])
    assert sorted(run.rglob("*")) == before


# --- ONNX


def run_onnx(path, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["logits"]
    return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def test_an_onnx_export_computes_the_logits_for_any_batch_size(run):
    network = trained("digits_resnet", norm="bn")  # the exporter takes ten times as long for "en"
    write_checkpoint(run / "checkpoints/best.ckpt", network, norm="bn")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = exporting.export(run / "checkpoints/best.ckpt", formats=["onnx"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.onnx"]
    for count in (1, 2, 5):
        with torch.no_grad():
            want = network(images(count))
        # Float32 rounding through 14 layers of outputs of order 1.
        torch.testing.assert_close(run_onnx(folder / "model.onnx", images(count)), want, rtol=1e-4, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(metadata["class_names"]) == NAMES
    assert json.loads(metadata["mean"]) == [0.5, 0.4, 0.3]
    assert metadata["interpolation"] == "bilinear"
    assert "`model.onnx` has the input" in (folder / "README.md").read_text()
    with pytest.raises(UserError, match="which holds no checkpoint"):
        load_classifier(folder)

    other = copy.deepcopy(network)
    with torch.no_grad():
        other.fc.bias += 1
    with pytest.raises(UserError, match=r"differs from the network by .* at batch 2"):
        exporting._compare(folder / "model.onnx", other, [images(2)])


@pytest.mark.slow
@pytest.mark.timeout(900)  # writing the graph of a ResNet-50 takes minutes on a busy machine
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("digits_resnet", "en"),
        ("digits_resnet", "sn"),
        ("digits_resnet", "ssn"),
        ("digits_resnet", "cbn"),
        ("digits_resnet", "gn"),
        ("resnet50", "en"),
        ("timm/efficientnet_b0", "bn"),
        ("googlenet", "bn"),
    ],
)
def test_onnx_of_other_networks_and_norms(tmp_path, name, norm):
    pytest.importorskip("onnxscript")
    built = trained(name, norm=norm)
    inputs = Inputs(NAMES, [0.5] * 3, [0.25] * 3, [64, 64], None, "bicubic")
    path = write_checkpoint(tmp_path / "best.ckpt", built, name, norm, inputs=inputs)
    folder = exporting.export(path, formats=list(exporting._WRITERS))
    with torch.no_grad():
        want = built(images(4, 64))
    # Float32 rounding through up to 50 layers; large logits have large errors.
    torch.testing.assert_close(
        run_onnx(folder / "model.onnx", images(4, 64)), want, rtol=1e-3, atol=1e-4 * float(want.abs().max())
    )


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match="--format onnx: expected onnxscript: pip install onnxscript"):
        exporting.export(run / "checkpoints/best.ckpt", formats=["onnx"])


# --- the command line


def test_the_command(run, capsys):
    exporting.main(["--ckpt_path", str(run), "--format", "safetensors", "--output", str(run / "out")])
    assert capsys.readouterr().out == f"exported to {run / 'out'}\n"
    assert load_classifier(run / "out").class_names == NAMES


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "export: .*required: --ckpt_path"),
        (["--ckpt_path", "nowhere.ckpt"], "got 'nowhere.ckpt', which does not exist"),
        (["--ckpt_path", "a", "--format", "tflite"], "export: .*--format.*safetensors.*onnx.*all"),
        (["--ckpt_path", "a", "--outptu", "b"], "export: unrecognized arguments: --outptu"),
    ],
)
def test_a_wrong_command(args, words):
    with pytest.raises(UserError, match=words):
        exporting.main(args)
