"""The command of a comparison: what it refuses, what it runs, how often, and what it says of failures."""

import csv
import fcntl
import itertools
import json
import signal

import pytest
import yaml
from compared_runs import stand_in, started
from task_paths import DIGITS

from tasks.compare import session
from tasks.compare.__main__ import main
from tasks.compare.plan import Comparison, Run, differences


@pytest.fixture
def compare(command, tmp_path, monkeypatch):
    """compare(*args) → Outcome of a comparison by the stand-in, on two cores wherever it is."""
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setattr(session, "cores", lambda: 2)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    run = command(main)
    yield lambda *args: run("--config", DIGITS, "--runs_dir", tmp_path / "runs", "--name", "one", *args)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "compare" / "one"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--modl.lr", "1"], "unknown option --modl.lr (did you mean --model.lr"),
        (["--norms", "bn", "xx"], "model.norm: expected one of bn, in, ln, gn, sn, ssn, cbn, en, got 'xx'"),
        (["--norms", "bn", "bn"], "--norms: expected each once, got bn 2 times"),
        (["--seeds", "1", "1"], "--seeds: expected each once, got 1 2 times"),
        (["--seeds", "-1"], "--seeds: expected an integer ≥ 0, got '-1'"),
        (["--model.norm=en"], "--model.norm: expected it to be left to the comparison: use --norms"),
        (["--seed_everything", "1"], "expected it to be left to the comparison: use --seeds"),
        (["--resume", "auto"], "--resume: expected it to be left to the comparison"),
        (["--name", "a/b"], "--name: expected a plain folder name, got 'a/b'"),
        (["--jobs", "3"], "--jobs: expected at most 2 (2 cores; a run has 1 thread), got 3"),
        (["--jobs", "2", "--threads", "2"], "expected at most 1 (2 cores; a run has 2 threads), got 2"),
        (["--threads", "3"], "threads: expected at most 2, the CPU cores that are there, got 3"),
        (["--markdown", "none.md"], "--markdown: expected a text file, got none.md"),
        (["--task", "detection"], "invalid choice: 'detection'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_starts(compare, folder, args, told):
    outcome = compare(*args)
    assert outcome.code == 2 and told in outcome.error
    assert not (folder / "tries").exists()


def test_a_document_without_marks_is_refused(compare, folder, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- /compare -->\n<!-- compare -->\n")
    assert "expected the lines <!-- compare --> and <!-- /compare -->" in compare("--markdown", page).error
    assert not (folder / "tries").exists()


def test_runs_go_beside_each_other_and_once(compare, folder, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- compare -->\nold\n<!-- /compare -->\nafter\n")
    args = ("--norms", "bn", "en", "--seeds", "3", "4", "--model.lr", "0.05", "--markdown", page)
    outcome = compare(*args)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "4 runs, 0 of them finished before; 2 at a time, 1 thread each, on 2 cores" in outcome.out
    tries, line, threads = started(folder, "en-seed4")
    assert (tries, threads) == (1, "1")
    assert line[:5] == ["-m", "tasks.classification", "fit", "--config", str(DIGITS)]
    after = dict(itertools.pairwise(line))
    assert (after["--model.lr"], after["--wandb.mode"], after["--test"], after["--resume"]) == (
        "0.05", "disabled", "true", "auto",
    )  # fmt: skip
    assert "en seed 4: finished  epoch 3/16  val/top1 0.7040" in outcome.out
    with (folder / "compare.csv").open(newline="") as file:
        rows = {(row["norm"], row["seed"]): row for row in csv.DictReader(file)}
    assert float(rows["en", "4"]["test"]) == pytest.approx(0.89)
    assert float(rows["en", "4"]["step_ms"]) == pytest.approx(1000 * 64 / 640)
    assert (rows["bn", "3"]["best_epoch"], float(rows["bn", "3"]["last"])) == ("3", pytest.approx(0.703))
    tree = json.loads((folder / "compare.json").read_text())
    assert tree["norms"]["en"]["minus_first"]["mean"]["value"] == pytest.approx(0.05)
    assert tree["norms"]["en"]["verdict"] == "better than bn"
    text = page.read_text()
    assert text.startswith("before\n<!-- compare -->\n`python -m tasks.compare --task classification")
    assert text.endswith("\n<!-- /compare -->\nafter\n") and "old" not in text
    assert "| bn | 83.50 ± 6.35 | 83.00, 84.00 | – | – |" in text  # t(0.975, 1) · s / √2 = 12.706 · 0.5


def test_what_has_finished_is_not_repeated_and_more_can_be_added(compare, folder, monkeypatch):
    monkeypatch.setattr(Comparison, "check_same", lambda self: None)  # the stand-in writes no configuration
    compare("--norms", "bn", "en", "--seeds", "3")
    outcome = compare("--norms", "bn", "en", "gn", "--seeds", "3")
    assert outcome.code == 0 and "3 runs, 2 of them finished before" in outcome.out
    assert [started(folder, f"{norm}-seed3")[0] for norm in ("bn", "en", "gn")] == [1, 1, 2]


def test_a_run_is_tried_once_more_then_counts_as_failed(compare, folder):
    outcome = compare("--norms", "gn", "ln", "--seeds", "0")
    assert outcome.code == 1
    assert started(folder, "gn-seed0")[0] == 2 and started(folder, "ln-seed0")[0] == 2
    assert "gn-seed0: ended with exit code 1, tried once more" in outcome.out
    assert "gn seed 0: finished" in outcome.out
    assert "  last words of ln" in outcome.out and outcome.out.rstrip().endswith("failed: ln-seed0")
    tree = json.loads((folder / "compare.json").read_text())["norms"]["ln"]
    assert (tree["mean"], tree["finished"], tree["verdict"]) == (
        None, 0, "no seed that both ln and gn have finished",
    )  # fmt: skip
    assert "last words of ln" in tree["runs"][0]["error"]
    assert "last words of ln" in (folder / "index.html").read_text()


def test_a_run_that_refuses_its_input_ends_the_comparison(compare, folder):
    outcome = compare("--norms", "in", "gn", "--seeds", "0", "1", "--jobs", "1")
    assert outcome.code == 2 and "error: in-seed0: no such option" in outcome.err
    assert started(folder, "in-seed0")[0] == 1 and started(folder, "gn-seed0")[0] == 0


def test_a_run_that_diverged_counts_and_is_named(compare, folder):
    outcome = compare("--norms", "gn", "sn", "--seeds", "0", "1")
    assert outcome.code == 0
    assert "50.00 (diverged), 51.00 (diverged)" in outcome.out
    runs = json.loads((folder / "compare.json").read_text())["norms"]["sn"]["runs"]
    assert [run["diverged"] for run in runs] == [True, True]


def test_two_comparisons_of_one_name_are_refused(compare, folder):
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"{folder}: a comparison of this name is running" in compare("--norms", "bn").error


def test_another_configuration_is_refused_with_its_key(compare, folder, tmp_path):
    comparison = Comparison(
        "classification", (str(DIGITS),), ("bn", "en"), (0,), ("--model.lr", "0.05"), folder
    )
    for norm in ("bn", "en"):
        run = Run(norm, 0)
        comparison.folder_of(run).path.mkdir(parents=True)
        comparison.folder_of(run).config.write_text(yaml.safe_dump(comparison.configuration(run)))
    comparison.check_same()
    told = compare("--norms", "bn", "en", "--seeds", "0", "--model.lr", "0.1").error
    assert "bn-seed0 was run with another configuration: model.lr was 0.05 and is now 0.1" in told
    assert not (folder / "tries").exists()


def test_differences_of_configurations():
    stored = {"name": "a", "runs_dir": "x", "model": {"lr": 0.1, "norm_options": {"reduction": 4}}}
    assert list(differences(stored, stored | {"name": "b", "runs_dir": "y"})) == []
    wanted = stored | {"model": {"lr": 0.1, "norm_options": {"reduction": 8}}}
    assert list(differences(stored, wanted)) == [("model.norm_options.reduction", 4, 8)]
    assert list(differences({"a": {"b": 1}}, {"a": {"c": 1}})) == [("a.b", 1, None), ("a.c", None, 1)]


def test_loader_processes_take_their_share(monkeypatch):
    monkeypatch.setattr(session, "cores", lambda: 8)
    config = {"threads": 1, "data": {"num_workers": 3}, "trainer": {"accelerator": "cpu"}}
    assert session.share(config, None, 9) == (2, 1)
    assert session.share(config, 1, 9) == (1, 1)
    assert session.share(config | {"threads": None}, None, 9) == (1, 8)
    assert session.share(config | {"data": {}}, None, 3) == (3, 1)
    with pytest.raises(session.UserError, match="a run has 1 thread and 3 loader processes"):
        session.share(config, 3, 9)
