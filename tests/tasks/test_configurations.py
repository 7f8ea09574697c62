"""Every shipped configuration is parsed and built, on a small data set in the layout that it names."""

import pytest
import torch
import torchvision
import yaml
from idx_files import fashion_files
from image_trees import cifar_tree, imagenet_tree
from task_paths import DIGITS, REPOSITORY

CONF = REPOSITORY / "conf"
CLASSIFICATION = sorted((CONF / "classification").glob("*.yaml"))
EVERY = [path for path in sorted(CONF.rglob("*.yaml")) if path.parent.name != "norm"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return imagenet_tree(tmp_path_factory.mktemp("trees") / "imagenet", classes=3, train=2, val=1)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(CONF)))
def test_header(path):
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "Command:" in header
    if path.parent.name not in ("trainer", "cluster"):
        assert ("Cost:" in header and "Expected:" in header) or "Cost, expected metric:" in header


@pytest.mark.parametrize("path", CLASSIFICATION, ids=lambda path: path.stem)
def test_classification(fit_parser, tree, tmp_path, monkeypatch, path):
    options = []
    if path.stem.startswith("cifar"):
        cifar_tree(tmp_path / "cifar", monkeypatch, torchvision.datasets.CIFAR10)
        options = ["--data.root", tmp_path / "cifar"]
    elif path.stem.startswith("fashion"):
        fashion_files(tmp_path / "fashion")
        options = ["--data.root", tmp_path / "fashion"]
    elif not path.stem.startswith("digits"):
        options = ["--data.root", tree]
    if path.stem == "folder":  # nothing is downloaded here
        options += ["--model.weights", "null"]
    built = fit_parser("--config", path, *options)
    assert built.run_name == path.stem
    assert built.model.hparams["norm"] == "en"


def test_the_recipes_are_those_of_the_papers(fit_parser, tree):
    """Spot checks of what comes out of the shared pieces."""

    def hparams(name):
        built = fit_parser("--config", CONF / "classification" / f"{name}.yaml", "--data.root", tree)
        return built.model.hparams, built.trainer, built.datamodule

    model, trainer, data = hparams("imagenet_resnet50_batch4")
    assert (model["lr"], model["lr_batch"], data.batch_size) == (0.1, 256, 4)
    assert (model["schedule"], model["milestones"], trainer.max_epochs) == ("step", [30, 60, 90], 100)
    assert model["last_gamma_zero"] and model["norm_weight_decay"] == 0.0
    model, trainer, data = hparams("imagenet_resnet50_modern")
    assert (model["lr"], model["lr_batch"], trainer.max_epochs, model["warmup_epochs"]) == (0.5, 1024, 600, 5)
    assert (data.repeats, data.auto_augment, data.erasing, data.train_size) == (4, "trivialaugment", 0.1, 176)
    assert any(type(callback).__name__ == "EMAWeightAveraging" for callback in trainer.callbacks)


@pytest.mark.parametrize("path", sorted((CONF / "norm").glob("*.yaml")), ids=lambda path: path.stem)
def test_norm(fit_parser, path):
    norm = yaml.safe_load(path.read_text())["model"]["norm"]
    assert path.stem == norm
    assert fit_parser("--config", DIGITS, "--config", path).model.hparams["norm"] == norm


@pytest.mark.parametrize("path", sorted((CONF / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_trainer(fit_parser, path):
    settings = yaml.safe_load(path.read_text())["trainer"]
    if settings["accelerator"] == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU to be built")
    # Laid over a task's configuration, it keeps what that says about the length of the run.
    trainer = fit_parser("--config", DIGITS, "--config", path).trainer
    told = yaml.safe_load(DIGITS.read_text())["trainer"]["max_epochs"]
    assert trainer.max_epochs == settings.get("max_epochs", told)
