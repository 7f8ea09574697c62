"""Every kind of bad input: one line that says what was expected, what came and where; exit code 2."""

import os
import subprocess
import sys

import pytest
import torch
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
    "--model.network alexnet --model.norm en": ["model.network", "'en'", "alexnet has no"],
    "--model.norm bn --model.norm_options.momentum 7": ["'bn'", "momentum", "7"],
    "--model.last_gamma_zero true --model.network vgg11_bn": ["model.last_gamma_zero", "ResNet"],
    "--model.mixup -1": ["model.mixup", "≥ 0", "-1.0"],
    "--model.lr_batch 0": ["model.lr_batch", "positive", "got 0"],
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
    "": ["expected a mapping", "is empty"],
    "1: 2\n": ["expected names as keys, got 1"],
    "model:\n  lr: ${nope.x}\n": ["model.lr", "'nope.x' not found"],
    "wandb: 3\n": ["wandb", "expected a mapping, got int"],
    "base: other.yaml\n": ["base: expected a list of YAML files, got 'other.yaml'"],
    "base: [nowhere.yaml]\n": ["nowhere.yaml", "base of", "does not exist"],
    "base: [bad.yaml]\n": ["builds on itself"],
    "dataset: mnist\n": ["dataset: expected one of digits, imagenet", "got 'mnist'"],
}


@pytest.mark.parametrize("content", FILES)
def test_bad_configuration_file(cli, tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    outcome = cli("fit", "--config", DIGITS, "--config", path)
    assert outcome.code == 2
    for part in [*FILES[content], str(path)]:
        assert part in outcome.error


def test_the_place_of_a_value_is_where_it_came_from(cli, tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("model:\n  norm: en\n  norm_options:\n    groups: many\n")
    line = ("fit", "--config", DIGITS, "--config", path, "--model.norm_options.reduction", "8")
    assert f"model.norm_options: expected int, got 'many' (in {path})" in cli(*line).error


def test_a_folder_is_no_configuration(cli, tmp_path):
    assert f"{str(tmp_path)!r} (given by --config) is a folder" in cli("fit", "--config", tmp_path).error


def test_fit_without_a_configuration(cli):
    assert "fit: expected --config conf/classification/<name>.yaml" in cli("fit", "--model.lr", "1").error


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
    assert "expected a subcommand (fit, validate, test, predict, export)" in cli().error


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
        for part in (str(last), "another architecture", "expected norm sn, got bn", "config.yaml"):
            assert part in outcome.error
    other = cli("test", *common, "--model.network", "resnet18")
    assert "expected network resnet18, got digits_resnet" in other.error
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


# Made with the first, asked for with the second: the names and shapes of all parameters agree.
TWINS = {
    "--model.norm gn --model.norm_options.groups 4": "--model.norm ln",
    "--model.norm gn --model.norm_options.groups 8": "--model.norm gn --model.norm_options.groups 4",
    "--model.norm en": "--model.norm en --model.norm_options.normalizers [ln,in,bn]",
    "--model.norm sn": "--model.norm sn --model.norm_options.eps 0.1",
}


@pytest.mark.parametrize("made_with", TWINS)
def test_a_checkpoint_whose_shapes_fit_by_chance(fit, cli, small, runs, made_with):
    assert fit("--trainer.max_epochs", "1", *made_with.split()).code == 0
    last = runs / "digits/checkpoints/last.ckpt"
    common = ("test", "--config", DIGITS, "--config", small, "--ckpt_path", last)
    other = cli(*common, *TWINS[made_with].split())
    assert other.code == 2 and "another architecture: expected norm" in other.error
    assert cli(*common, *made_with.split()).code == 0


def test_defaults_written_out_are_the_same_architecture(fit, cli, small, runs):
    plain = ("--model.norm", "en", "--model.norm_options", "null")
    assert fit("--trainer.max_epochs", "1", *plain).code == 0
    last = runs / "digits/checkpoints/last.ckpt"
    common = ("test", "--config", DIGITS, "--config", small, "--ckpt_path", last)
    written_out = (
        "--model.norm en --model.norm_options null --model.norm_options.normalizers [in,ln,bn] "
        "--model.norm_options.reduction 32"
    )
    assert cli(*common, *written_out.split()).code == 0


def test_missing_parameters_are_counted_and_named(fit, cli, small, runs):
    assert fit("--trainer.max_epochs", "1").code == 0
    last = runs / "digits/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    state = content["state_dict"]
    state["network.nothing"] = state.pop("network.fc.bias")
    state["network.fc.weight"] = state["network.fc.weight"].T
    torch.save(content, last)
    outcome = cli("test", "--config", DIGITS, "--config", small, "--ckpt_path", last)
    for part in (
        "1 missing (network.fc.bias)",
        "1 unexpected (network.nothing)",
        "1 of another shape (network.fc.w",
    ):
        assert part in outcome.error


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
    ("group", "value"), [("model", "5"), ("data", "[1]"), ("trainer", "hello"), ("model", "")]
)
def test_a_section_of_the_wrong_type(cli, tmp_path, group, value):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{group}: {value}\n")
    outcome = cli("fit", "--config", str(path))
    assert outcome.code == 2
    assert f"{path}: {group}: expected a mapping or a YAML file" in outcome.error
