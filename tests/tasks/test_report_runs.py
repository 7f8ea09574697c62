"""What a report says about a run: metrics.csv, the header's promise, facts, the index."""

import json
import os
import re
import subprocess

import pytest
import torch
from pytorch_lightning import Trainer
from task_paths import DIGITS, REPOSITORY

from tasks.errors import UserError
from tasks.report.curves import curves_of_run
from tasks.report.environment import hardware, peak_memory, revision, versions
from tasks.report.expected import Expectation, command_of, expectation_of, header_field
from tasks.report.facts import RunFacts, facts_of_folder, read_summary, write_summary
from tasks.report.index import find_runs, write_index
from tasks.report.meter import Meter
from tasks.report.metrics import Curve, read_metrics
from tasks.report.run import write_report

# Two epochs of four steps, the second one resumed; the test's row has a step of its own.
METRICS = """epoch,step,test/top1,train/loss,train/lr,val/loss,val/top1
0,1,,2.5,0.1,,
0,3,,2.0,0.2,,
0,3,,,,1.75,0.5
1,5,,1.5,0.3,,
1,7,,1.0,0.4,,
1,7,,,,1.25,0.75
2,8,0.7,,,,
2,
"""
COMMAND = f"python -m tasks.classification fit --config {DIGITS} --model.norm sn"


def make_run(folder, norm="sn", metrics=METRICS, command=COMMAND):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"# {command}\ndataset: digits\nmodel:\n  network: digits_resnet\n  norm: {norm}\n"
    )
    (folder / "metrics.csv").write_text(metrics)
    return folder


def test_curves_over_epochs(tmp_path):
    curves = read_metrics(make_run(tmp_path / "run") / "metrics.csv")
    assert curves == {
        "train/loss": Curve([0.5, 1, 1.5, 2], [2.5, 2, 1.5, 1]),
        "train/lr": Curve([0.5, 1, 1.5, 2], [0.1, 0.2, 0.3, 0.4]),
        "val/loss": Curve([1, 2], [1.75, 1.25]),
        "val/top1": Curve([1, 2], [0.5, 0.75]),
        "test/top1": Curve([2.25], [0.7]),
    }
    assert read_metrics(tmp_path / "nowhere.csv") == {}


def test_what_is_measured_by_the_loss_is_not_drawn_among_the_losses():
    names = ("train/loss", "val/loss", "train/noise_auroc_loss")
    html = curves_of_run({name: Curve([1, 2], [0.5, 0.75]) for name in names}, "val/top1", None)
    losses, training = re.findall('aria-label="(.*?)"', html)
    assert losses.startswith("Loss over epochs: train/loss from") and "auroc" not in losses
    assert training.startswith("Training over epochs: train/noise_auroc_loss from")


def test_long_curves_are_means_of_neighbours():
    curve = Curve([float(i) for i in range(7)], [0.0, 2, 4, 6, 8, 10, 12])
    assert curve.thinned(7) is curve
    assert curve.thinned(3) == Curve([1, 4, 6], [2, 8, 12])


HEADER = """# Command:  make train-cls
# Cost:     1 h on one GPU.
# Expected: test/top1 0.998 with en, 99.9 % with bn: means of seeds 0, 1, 2
#           (make compare); val/loss 0.25, test/top5 1.0.
# Note: 3 runs
trainer: {}
# Expected: of no header
"""


def test_the_expected_field_of_a_header():
    text = header_field(HEADER, "Expected")
    assert text == (
        "test/top1 0.998 with en, 99.9 % with bn: means of seeds 0, 1, 2 "
        "(make compare); val/loss 0.25, test/top5 1.0."
    )
    assert header_field(HEADER, "Source") == header_field("trainer: {}\n", "Expected") == ""
    expectation = Expectation(DIGITS, text)
    targets = [("test/top1", "en"), ("test/top1", "bn"), ("val/loss", "bn"), ("test/top5", "en")]
    assert [expectation.target(*target) for target in targets] == pytest.approx([0.998, 0.999, 0.25, 1])
    for metric, norm in (("test/top1", "sn"), ("val/top1", "en"), ("test/top", "en")):
        assert expectation.target(metric, norm) is None
    assert Expectation(DIGITS, "not yet run; val/top1 about 3").target("val/top1", "en") is None


def test_the_header_is_that_of_the_commands_configuration(tmp_path):
    config = make_run(tmp_path / "run") / "config.yaml"
    assert command_of(config) == COMMAND
    found = expectation_of(COMMAND)
    assert found.path == DIGITS and found.text.startswith("test/top1 ")
    assert expectation_of("python -m tasks.classification fit --config moved.yaml") is None
    assert expectation_of("") is None and command_of(tmp_path / "nowhere.yaml") == ""


def test_revision_of_the_code(tmp_path):
    def git(*args):
        names = {name: "x" for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME")}
        names |= {name: "x@x" for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL")}
        subprocess.run(["git", "-C", str(tmp_path), *args], check=True, env={**os.environ, **names})

    (tmp_path / "a").write_text("1")
    assert revision(tmp_path) is None, "no checkout"
    git("init", "--quiet")
    git("add", "a")
    git("commit", "--quiet", "-m", "x")
    commit = (tmp_path / ".git/refs/heads" / os.listdir(tmp_path / ".git/refs/heads")[0]).read_text().strip()
    assert revision(tmp_path) == f"{commit} (clean)"
    (tmp_path / "a").write_text("2")
    assert revision(tmp_path) == f"{commit} (with uncommitted changes)"


def test_where_it_ran():
    assert versions()["torch"] == torch.__version__
    assert hardware()["CPU"] and hardware()["CPU cores"].endswith(f"of {os.cpu_count()}")
    # Torch alone takes more than 100 MiB, and no machine that runs the tests has a TiB for them.
    assert 100 * 2**20 < peak_memory() < 2**40


def test_a_summary_is_read_back(tmp_path):
    facts = RunFacts("classification", "x", norm="en", best=0.5, test={"test/top1": 0.25}, seconds=61.5)
    write_summary(tmp_path, facts)
    assert read_summary(tmp_path) == facts
    for damaged in ("", "[]", "{}", '{"task": '):
        (tmp_path / "summary.json").write_text(damaged)
        assert read_summary(tmp_path) is None


def test_a_run_without_a_summary_is_told_from_its_files(tmp_path):
    facts, curves = facts_of_folder(make_run(tmp_path / "classification/run"))
    assert (facts.task, facts.name, facts.dataset, facts.norm) == ("classification", "run", "digits", "sn")
    assert (facts.monitor, facts.best, facts.epochs, facts.test) == ("val/top1", 0.75, 2, {"test/top1": 0.7})
    assert curves["val/top1"].values == [0.5, 0.75]


def test_report_of_a_run(tmp_path):
    folder = make_run(tmp_path / "runs/classification/<b>run")
    facts = RunFacts("classification", folder.name, norm="sn", monitor="val/top1", best=0.75)
    write_report(folder, facts)
    text = (folder / "report.html").read_text()
    for part in (
        "best val/top1",
        "0.7500",
        "val/loss from 1.75 to 1.25",
        "--model.norm sn",
        torch.__version__,
    ):
        assert part in text
    assert "norm: sn" in text and "<b>run" not in text and "&lt;b&gt;run" in text
    assert json.loads((folder / "summary.json").read_text())["best"] == 0.75


def test_a_report_that_cannot_be_written_is_told(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    write_report(folder, RunFacts("classification", "run"))
    assert "report.html could not be written" in capsys.readouterr().out


def test_the_index_finds_every_run_and_only_runs(tmp_path):
    make_run(tmp_path / "classification/a")
    make_run(tmp_path / "study/classification/b", norm="<i>")
    make_run(tmp_path / "classification/a/wandb/offline-run/files")  # as W&B keeps its own config.yaml
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("model: {}\n")
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
    assert sorted(found) == ["classification/a", "study/classification/b"]
    assert write_index(tmp_path) == 2
    text = (tmp_path / "index.html").read_text()
    assert ">a</th>" in text and ">study/b</th>" in text and "<i>" not in text


@pytest.mark.parametrize(("make", "message"), [(False, "expected a folder, got"), (True, "got none")])
def test_no_runs(tmp_path, make, message):
    root = tmp_path / "runs"
    if make:
        root.mkdir()
    with pytest.raises(UserError, match=message):
        write_index(root)


def test_the_meter_counts_over_resumes(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)

    def train(meter):
        meter.on_train_start(trainer, None)
        for _ in range(2):
            clock[0] += 5
            meter.on_train_batch_end(trainer, None, None, (torch.zeros(30, 1), None), 0)
        meter.on_validation_start(trainer, None)
        clock[0] += 3
        meter.on_validation_end(trainer, None)

    first = Meter()
    assert first.images_per_second is None
    train(first)
    assert (first.seconds, first.images_per_second) == (13, 6)  # 60 images in 10 s
    second = Meter()
    second.load_state_dict(first.state_dict())
    clock[0] += 1000  # between the two
    train(second)
    second.on_train_end(trainer, None)
    clock[0] += 1000
    assert (second.seconds, second.images_per_second) == (26, 6)


def test_the_shipped_headers_are_read():
    for path in sorted((REPOSITORY / "conf/classification").glob("*.yaml")):
        assert header_field(path.read_text(), "Expected"), path
