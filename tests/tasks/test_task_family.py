"""What the suite does for particular normalizers: SSN's schedule, statistics across processes."""

import pytest
import torch
import yaml
from task_paths import DIGITS

from exemplar_norm import SparseSwitchNorm2d
from exemplar_norm.batch import BatchNorm
from exemplar_norm.sparsestmax import circumradius
from tasks.classification.module import ClassificationModule


def test_ssn_ends_a_run_with_one_normalizer_a_layer(fit, runs):
    outcome = fit("--model.norm", "ssn")
    assert outcome.code == 0, outcome.err
    state = torch.load(runs / "digits" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    radii = [value for key, value in state.items() if key.endswith("radius")]
    assert radii and all(r == pytest.approx(circumradius(3)) for r in radii)
    model = ClassificationModule(network="digits_resnet", norm="ssn")
    model.load_state_dict(state)
    layers = [m for m in model.modules() if isinstance(m, SparseSwitchNorm2d)]
    for layer in layers:
        for mixture in layer.mixture():
            assert sorted(mixture.tolist()) == [0, 0, 1]


def test_ssn_radius_is_that_of_the_step(fit, runs, monkeypatch):
    seen = []
    step = ClassificationModule.training_step

    def training_step(self, data, batch_idx):
        seen.append(next(m.radius for m in self.modules() if isinstance(m, SparseSwitchNorm2d)).item())
        return step(self, data, batch_idx)

    monkeypatch.setattr(ClassificationModule, "training_step", training_step)
    assert fit("--model.norm", "ssn").code == 0
    # Two epochs of three steps.
    assert seen == pytest.approx([circumradius(3) * n / 6 for n in range(1, 7)])


@pytest.mark.parametrize("flag", ["--model.sync", "--trainer.sync_batchnorm"])
@pytest.mark.parametrize("norm", ["bn", "en", "gn"])
def test_sync_reaches_every_layer_with_batch_statistics(fit, monkeypatch, flag, norm):
    seen = {}

    def on_fit_start(self):
        seen["layers"] = [m for m in self.modules() if hasattr(m, "running_mean")]
        seen["flags"] = [m.sync for m in seen["layers"]]

    monkeypatch.setattr(ClassificationModule, "on_fit_start", on_fit_start)
    outcome = fit("--model.norm", norm, flag, "true")
    assert outcome.code == 0, outcome.err
    assert all(seen["flags"])
    assert bool(seen["layers"]) == (norm != "gn")  # gn has nothing to synchronise, which is no mistake
    if norm == "bn":  # PyTorch's own cannot span processes on CPU
        assert {type(m) for m in seen["layers"]} == {BatchNorm}


def test_sync_keeps_checkpoints_compatible(fit, cli, runs):
    assert fit("--model.norm", "bn", "--model.sync", "true").code == 0
    last = runs / "digits" / "checkpoints" / "last.ckpt"
    assert yaml.safe_load((runs / "digits" / "config.yaml").read_text())["model"]["sync"] is True
    outcome = cli("test", "--config", str(DIGITS), "--model.norm", "bn", "--ckpt_path", str(last))
    assert outcome.code == 0, outcome.err
