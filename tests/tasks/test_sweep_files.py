"""Sweep files: what is refused, and how a choice of values becomes a command line."""

import copy

import pytest
import yaml
from task_paths import REPOSITORY

from tasks.errors import UserError
from tasks.sweeps.file import load_sweep

SHIPPED = sorted((REPOSITORY / "conf" / "sweep").glob("*.yaml"))
COMMON = ["fit", "--config", "conf/classification/digits.yaml"]
LOG = {"distribution": "log_uniform_values"}
GOOD = {
    "method": "bayes",
    "metric": {"name": "val/top1", "goal": "maximize"},
    "parameters": {"model.lr": {"min": 0.1, "max": 0.5}, "model.norm": {"values": ["bn", "en"]}},
    "command": ["${env}", "python", "-m", "tasks.classification", *COMMON, "${args}"],
}


def written(tmp_path, tree):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def changed(*keys, value):
    """GOOD with the value at a path of keys replaced, or removed for None."""
    tree = copy.deepcopy(GOOD)
    node = tree
    for key in keys[:-1]:
        node = node[key]
    if value is None:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return tree


def test_a_choice_becomes_the_command_line_that_the_agent_of_wandb_writes(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = load_sweep(written(tmp_path, GOOD))
    assert (sweep.task, sweep.method, sweep.metric, sweep.maximized) == (
        "classification",
        "bayes",
        "val/top1",
        True,
    )
    values = {"a": 0.1, "b": True, "c": [1, 2], "d": "a b", "e": 1e-05, "f": {"x": 1}}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    assert sweep.arguments(values) == [*COMMON, *theirs["args"]]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (changed("method", value="bayess"), "method: expected one of grid, random, bayes, got 'bayess'"),
        (changed("metric", value=None), "metric: expected name and goal, which bayes needs, got none"),
        (changed("metric", "goal", value="up"), "metric: expected name and goal .maximize or minimize."),
        (changed("method", value="grid"), "parameters.model.lr: expected values, which a grid needs"),
        (changed("parameters", value={}), "parameters: expected options"),
        (changed("parameters", "model.lr", "max", value=0.05), "model.lr: expected min below max"),
        (
            changed(
                "parameters", "model.lr", value={"min": 0, "max": 1, "distribution": "log_uniform_values"}
            ),
            "expected a positive min",
        ),
        (changed("parameters", "model.lr", value={"values": [None, 1]}), 'expected "null" in quotes'),
        (changed("parameters", "model.lr", value={"values": []}), "expected at least one value"),
        (changed("parameters", "model.lr", value=3), "expected value, values or min and max, got 3"),
        (
            changed("parameters", "model.lr", value={"parameters": {"x": {"value": 1}}}),
            "expected a dotted option",
        ),
        (changed("command", value=None), "command: expected the list"),
        (changed("command", value=["python", "train.py", "${args}"]), "command: expected the form"),
        (changed("command", value=GOOD["command"][:-1]), "expected .{args} once, at its end"),
        (changed("command", value=["${interpreter}", *GOOD["command"][1:]]), "command: expected the form"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_refused(tmp_path, tree, message):
    path = written(tmp_path, tree)
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_early_end_needs_a_metric(tmp_path):
    tree = changed("metric", value=None) | {"method": "random", "early_terminate": {"type": "hyperband"}}
    with pytest.raises(UserError, match="which early_terminate needs"):
        load_sweep(written(tmp_path, tree))


def test_what_is_no_sweep(tmp_path):
    for text in ("[1, 2]", "method: [", "\x00"):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match="expected"):
            load_sweep(path)
    with pytest.raises(UserError, match="No such file"):
        load_sweep(tmp_path / "none.yaml")


def test_every_task_has_a_sweep_and_every_shipped_one_is_sound():
    tasks = {load_sweep(path).task for path in SHIPPED}
    assert tasks == {"classification", "noisy_labels", "segmentation"}
    study = load_sweep(REPOSITORY / "conf/sweep/classification_study.yaml")
    assert study.method == "grid"
    assert study.parameters.keys() == {"model.norm", "data.batch_size", "seed_everything"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_command_line_of_a_shipped_sweep_is_parsed_by_its_task(path, monkeypatch, recwarn):
    from tasks.sweeps.check import check_sweep

    monkeypatch.chdir(REPOSITORY)
    assert "command lines" in check_sweep(path)


def test_the_task_refuses_what_it_does_not_know(tmp_path, monkeypatch):
    from tasks.sweeps.check import check_sweep

    monkeypatch.chdir(REPOSITORY)
    unknown = changed("parameters", "model.lrr", value={"min": 0.1, "max": 0.5})
    with pytest.raises(UserError, match=r"unknown option --model.lrr \(did you mean --model.lr"):
        check_sweep(written(tmp_path, unknown))
    # Only the last of the values is wrong.
    wrong = changed("parameters", "model.norm", "values", value=["bn", "en", "enn"])
    with pytest.raises(UserError, match=r"model.norm: expected one of .*got 'enn'"):
        check_sweep(written(tmp_path, wrong))
    nowhere = changed("command", 3, value="tasks.nothing")
    with pytest.raises(UserError, match="there is no task 'nothing'"):
        check_sweep(written(tmp_path, nowhere))


def test_the_schema_of_wandb_is_asked_where_it_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("sweeps")
    from tasks.sweeps.check import check_sweep

    tree = changed("parameters", "model.lr", value={"distribution": "norml"})
    with pytest.raises(UserError, match=r"W&B refuses it: .*norml"):
        check_sweep(written(tmp_path, tree))


def test_the_command(tmp_path, capsys, monkeypatch):
    from tasks.sweeps.__main__ import main

    monkeypatch.chdir(tmp_path)
    for args, message in [
        (["check"], "conf/sweep holds none"),
        (["local"], "the following arguments are required: file"),
        (["local", "x.yaml", "--count", "0"], "expected an integer ≥ 1, got '0'"),
        (["local", "x.yaml"], "x.yaml: expected a sweep in YAML"),
        (["wandb", "x.yaml"], "x.yaml: expected a sweep in YAML"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_without_a_key_wandb_is_not_asked(tmp_path, monkeypatch):
    from tasks.sweeps.agent import run_with_wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setattr("wandb.login", lambda **options: False)
    with pytest.raises(UserError, match=r"expected a key \(wandb login\), got none; make sweep-local SWEEP="):
        run_with_wandb(written(tmp_path, GOOD), None, "exemplar-norm", tmp_path / "runs")
