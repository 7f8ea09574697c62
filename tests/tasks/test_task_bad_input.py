"""Every kind of bad input: one line that says what was expected, what came and where; exit code 2."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from task_paths import DIGITS, REPOSITORY

# options → what the line must say
OPTIONS = {
    "--model.norm foo": ["model.norm", "expected one of bn, in, ln, gn, sn", "got 'foo'", "command line"],
    "--model.norm_options.redction 8": ["'redction'", "expected one of", "reduction", "command line"],
    "--model.norm_options.reduction x": ["model.norm_options.reduction", "expected int", "got 'x'"],
    "--model.norm bn --model.norm_options.reduction 8": ["'bn'", "'reduction'", "expected one of eps"],
    "--model.norm en --model.norm_options.reduction 0": ["'en'", "reduction", "positive", "got 0"],
    "--model.norm en --model.norm_options.normalizers [in,in]": ["'en'", "normalizers", "in"],
    "--model.norm en --model.norm_options.normalizers [in,xx]": ["in, ln, bn, gn", "got 'xx'"],
    "--model.network resnt50": ["model.network", "'resnt50'", "resnet50", "digits_resnet"],
    "--model.nope 3": ["unknown option --model.nope", "did you mean --model."],
    "--data.batch_size abc": ["data.batch_size", "expected int", "got 'abc'"],
    "--data.batch_size 0": ["data.batch_size", "expected a positive number", "got 0"],
    "--data.contrast 2": ["data.contrast", "(0, 1]", "got 2.0"],
    "--model.lr -1": ["model.lr", "positive", "got -1.0"],
    "--model.schedule exp": ["model.schedule", "expected one of cosine, step", "got 'exp'"],
    "--trainer.max_epochs x": ["trainer.max_epochs", "expected int", "got 'x'"],
    "--trainer.accelerator tpu": ["trainer: ", "torch_xla"],
    "--wandb.mode x": ["wandb.mode", "auto, online, offline, disabled", "got 'x'"],
    "--name a/b": ["--name", "plain folder name", "'a/b'"],
    "--resume nowhere.ckpt": ["--resume", "'nowhere.ckpt'", "does not exist"],
    "--ckpt_path last": ["--ckpt_path", "--resume"],
    "--config nowhere.yaml": ["'nowhere.yaml'", "--config", "does not exist"],
    "stray": ["unexpected argument 'stray'"],
}


@pytest.mark.parametrize("options", OPTIONS)
def test_bad_option(fit, runs, options):
    outcome = fit(*options.split())
    assert outcome.code == 2
    assert outcome.error.startswith("error: ")
    for part in OPTIONS[options]:
        assert part in outcome.error
    assert not runs.exists(), "nothing may be left behind"


# file content → what the line must say beside the file's name
FILES = {
    "model:\n  nrm: bn\n": ["unknown configuration key 'model.nrm'", "did you mean model.norm"],
    "modle:\n  norm: bn\n": ["unknown configuration key 'modle.norm'"],
    "model:\n  lr: fast\n": ["model.lr", "expected float", "got 'fast'"],
    "model:\n  norm_options:\n    foo: 1\n": ["model.norm_options", "'foo'", "reduction"],
    "model: [\n": ["malformed YAML", "line 2"],
    "- 1\n": ["expected a mapping", "list"],
    "trainer: nowhere.yaml\n": ["nowhere.yaml", "does not exist", "trainer"],
}


@pytest.mark.parametrize("content", FILES)
def test_bad_configuration_file(cli, tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    outcome = cli("fit", "--config", DIGITS, "--config", path)
    assert outcome.code == 2
    for part in [*FILES[content], str(path)]:
        assert part in outcome.error


def test_bad_key_in_an_included_file_names_that_file(cli, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/trainer.yaml").write_text("max_epoch: 3\n")
    (tmp_path / "main.yaml").write_text("trainer: parts/trainer.yaml\n")
    outcome = cli("fit", "--config", tmp_path / "main.yaml")
    assert outcome.code == 2
    assert "'trainer.max_epoch'" in outcome.error and f"{tmp_path}/parts/trainer.yaml" in outcome.error
    assert "trainer.max_epochs" in outcome.error


def test_subcommands(cli):
    assert "unknown subcommand 'fti' (did you mean fit?)" in cli("fti").error
    assert "expected a subcommand (fit, validate, test, predict)" in cli().error


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
@pytest.mark.parametrize("word", [None, "last", "best", "nowhere.ckpt"])
def test_evaluation_needs_a_checkpoint_file(cli, subcommand, word):
    outcome = cli(subcommand, "--config", DIGITS, *(["--ckpt_path", word] if word else []))
    assert outcome.code == 2
    assert "--ckpt_path" in outcome.error and "checkpoint file" in outcome.error
    assert word is None or f"got {word!r}" in outcome.error


class Intruder:
    def __reduce__(self):
        return (print, ("code in a checkpoint was run",))


@pytest.mark.parametrize("kind", ["text", "short", "code", "weights only"])
def test_what_is_no_checkpoint(fit, cli, small, runs, tmp_path, kind):
    path = tmp_path / "bad.ckpt"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "code":
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2", "x": Intruder()}, path)
    else:
        torch.save({"weight": torch.zeros(1000)}, path)
        if kind == "short":
            path.write_bytes(path.read_bytes()[:1000])
    for outcome in (
        fit("--resume", path),
        cli("test", "--config", DIGITS, "--config", small, "--ckpt_path", path),
    ):
        assert outcome.code == 2
        assert str(path) in outcome.error and "checkpoint" in outcome.error
        assert "was run" not in outcome.out
    assert not runs.exists()


def test_a_checkpoint_of_another_architecture(fit, cli, small, runs):
    assert fit("--trainer.max_epochs", "1").code == 0
    last = runs / "digits/checkpoints/last.ckpt"
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    common = ("--config", DIGITS, "--config", small, "--ckpt_path", last)
    for outcome in (
        fit("--resume", last, "--model.norm", "sn"),
        fit("--resume", "auto", "--model.norm", "sn"),
        cli("test", *common, "--model.norm", "sn"),
        cli("predict", *common, "--model.norm", "sn"),
    ):
        assert outcome.code == 2
        for part in (str(last), "another architecture", "norm bn", "missing", "mean_weight", "config.yaml"):
            assert part in outcome.error
    other = cli("test", *common, "--model.network", "resnet18")
    for part in ("missing", "unexpected", "of another shape"):
        assert part in other.error
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_the_traceback_is_there_on_demand(cli, monkeypatch):
    monkeypatch.setenv("EXEMPLAR_NORM_TRACEBACK", "1")
    assert "Traceback" in cli("fti").err


def test_a_process_says_it_at_once_and_leaves_with_code_2():
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tasks.classification", "fit", "--config", "nowhere.yaml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert process.returncode == 2
    assert process.stdout == ""
    lines = [line for line in process.stderr.splitlines() if not line.startswith("import time:")]
    assert lines == ["error: configuration file 'nowhere.yaml' (given by --config) does not exist"]
    assert "| torch" not in process.stderr, "nothing heavy may be imported for this"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "conf/classification").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_classification_configuration_builds(fit_parser, path):
    fit_parser("--config", path)
    header = path.read_text().splitlines()[:6]
    for word in ("Command:", "Cost:", "Expected:"):
        assert any(word in line for line in header)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "conf/norm").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_norm_configuration_builds(fit_parser, path):
    norm = yaml.safe_load(path.read_text())["model"]["norm"]
    assert path.stem == norm
    assert fit_parser("--config", DIGITS, "--config", path).model.hparams["norm"] == norm


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "conf/trainer").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_trainer_configuration_parses(fit_parser, path):
    # Laid over a task's configuration, it keeps what that says about the length of the run.
    assert fit_parser("--config", DIGITS, "--config", path).trainer.max_epochs == 20


@pytest.mark.parametrize(
    ("group", "value"), [("model", "5"), ("data", "[1]"), ("trainer", "hello"), ("model", "")]
)
def test_a_section_of_the_wrong_type(cli, tmp_path, group, value):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{group}: {value}\n")
    outcome = cli("fit", "--config", str(path))
    assert outcome.code == 2
    assert f"{path}: {group}: expected a mapping or a YAML file" in outcome.error
