"""Every shipped configuration of noisy labels is parsed and built, on a small data set in its layout."""

import sys

import pytest
import torchvision
from image_trees import cifar_tree
from task_paths import REPOSITORY
from webvision_tree import imagenet_val, webvision_tree

CONF = REPOSITORY / "conf" / "noisy_labels"
PATHS = sorted(CONF.glob("*.yaml"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    return webvision_tree(folder / "webvision", google=1, flickr=1, val=1), imagenet_val(folder / "imagenet")


@pytest.fixture
def build(monkeypatch, tmp_path, roots):
    """build(path) → the command line of fit with everything built, and nothing run."""
    from tasks.cli import ExperimentCLI, run
    from tasks.noisy_labels.__main__ import DATASETS
    from tasks.noisy_labels.module import NoisyLabelsModule

    monkeypatch.setattr(sys, "argv", ["tasks"])
    monkeypatch.setattr(ExperimentCLI, "fit", lambda self, model, datamodule: None)

    def options(path):
        for name in ("cifar100", "cifar10"):
            if path.stem.startswith(name):
                cifar_tree(tmp_path / name, monkeypatch, getattr(torchvision.datasets, name.upper()))
                return ["--data.root", tmp_path / name]
        return ["--data.root", roots[0], "--data.imagenet_root", roots[1]] if "webvision" in path.stem else []

    def built(path):
        line = ["fit", "--config", path, *options(path), "--runs_dir", tmp_path / "runs"]
        line += ["--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
        return run("noisy_labels", NoisyLabelsModule, DATASETS, [str(arg) for arg in line])

    return built


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_built(build, path):
    built = build(path)
    assert built.run_name == path.stem and built.model.hparams["norm"] == "en"
    assert path.stem.endswith(built.model.method) or path.stem.startswith("digits")
    assert (built.model.second is not None) == path.stem.endswith(("co_teaching", "divide_mix"))
    if path.stem.startswith(("cifar", "digits")):
        noise = built.datamodule.noise
        assert (noise.kind, noise.rate) == ("symmetric", 0.4)


def test_the_recipe_of_mini_webvision(build):
    built = build(CONF / "webvision_mini_elr.yaml")
    model, trainer, data = built.model.hparams, built.trainer, built.datamodule
    assert (model["network"], model["lr"], model["lr_batch"], model["nesterov"]) == (
        "resnet50",
        0.4,
        512,
        True,
    )
    assert (model["weight_decay"], trainer.max_epochs, trainer.gradient_clip_val) == (3e-5, 250, 5)
    # × 0.97 after each epoch.
    assert (model["schedule"], model["lr_gamma"]) == ("exponential", 0.97)
    assert (data.color_jitter, data.hue_jitter) == (0.4, 0.2)
    assert (data.protocol, data.source, data.train_size) == ("mini", "google", 224)
    assert model["loss_options"] == {"beta": 0.7, "strength": 3.0}
