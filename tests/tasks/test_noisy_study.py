"""The study of label noise: its tables, its file and its place in the documentation."""

import json

import pytest
import yaml

from benchmarks import noisy_labels
from benchmarks.noisy_labels_tables import BEST, LAST, TEST, gains, report, spread, table, verdict

RATIO = "train/noise_auroc_ratio"


def row(method, norm, rate, seed, test):
    return {"method": method, "norm": norm, "rate": rate, "seed": seed, TEST: test, LAST: 0.5, BEST: 0.5} | {
        "seconds": 60.0
    }


ROWS = [
    *(row("ce", "bn", 0.4, seed, test) for seed, test in enumerate([0.6, 0.7, 0.8])),
    *(row("gce", "bn", 0.4, seed, test) for seed, test in enumerate([0.9, 0.95, 1.0])),
    *(row("ce", "en", 0.4, seed, test) | {RATIO: 0.5} for seed, test in enumerate([0.6, 0.7, 0.8])),
    *(row("gce", "en", 0.4, seed, test) | {RATIO: 0.6} for seed, test in enumerate([0.7, 0.8, 0.9])),
    *(row("gce", "bn", 0.0, seed, 1.0) for seed in range(3)),
]


def test_spread_is_the_deviation_of_a_sample():
    assert spread([0.6, 0.7, 0.8]) == "70.0 ± 10.0"
    assert spread([0.6]) == "60.0" and spread([]) == ""


def test_a_column_is_a_normalizer_that_has_the_metric():
    lines = table(ROWS, TEST).splitlines()
    assert lines[0] == "| noise | method | bn | en |"
    assert (
        "| 40 % | `gce` | 95.0 ± 5.0 | 80.0 ± 10.0 |" in lines and "| 0 % | `gce` | 100.0 ± 0.0 |  |" in lines
    )
    assert table(ROWS, RATIO).splitlines()[0] == "| noise | method | en |"
    assert table(ROWS, "nothing") == ""


def test_a_gain_counts_outside_of_both_deviations():
    found = gains(ROWS, TEST)
    assert [gain[:3] for gain in found] == [("gce", 0.4, "bn"), ("gce", 0.4, "en")]
    assert [gain[3:] for gain in found] == [pytest.approx((0.25, 0.15)), pytest.approx((0.1, 0.2))]
    assert verdict(ROWS, TEST) == (
        "- `gce`, 40 % noise: bn +25.0 (better, outside 15.0), en +10.0 (within 20.0)"
    )
    worse = [row | {"method": {"ce": "gce", "gce": "ce"}[row["method"]]} for row in ROWS]
    assert "bn -25.0 (worse, outside 15.0)" in verdict(worse, TEST)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study() → a Study whose runs are made up, and the methods that were run since."""
    monkeypatch.setattr(noisy_labels, "RESULT", tmp_path / "noisy_labels.json")
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"max_epochs": 1}}))
    accuracies = {"0.05": 0.5, "0.025": 0.7, "0.1": 0.7}
    ran = []

    def in_a_process(line, log):
        value = dict(zip(line[1::2], line[2::2], strict=True))
        folder = tmp_path / "runs" / "noisy_labels" / value["--name"]
        folder.mkdir(parents=True)
        best = accuracies[value["--model.lr"]]
        folder.joinpath("metrics.csv").write_text(f"val/top1,test/top1\n{best},\n0.25,\n,0.75\n")
        ran.append(line)

    monkeypatch.setattr(noisy_labels, "in_a_process", in_a_process)
    return lambda kind="symmetric": (noisy_labels.Study(str(config), kind, 0.4, tmp_path / "runs"), ran)


def test_the_best_by_validation_is_chosen_and_what_is_done_is_not_repeated(study):
    first, ran = study()
    first.tune("co_teaching")
    first.run("co_teaching", "en", 0.4, 0)
    assert first.result["chosen"] == {"co_teaching": "0.025"}  # the first of two
    assert len(ran) == 4 and ran[-1][ran[-1].index("--model.lr") + 1] == "0.025"
    assert ran[-1][ran[-1].index("--model.loss_options.forget_rate") + 1] == "0.4"
    assert [line[line.index("--test") + 1] for line in ran] == ["false"] * 3 + ["true"]
    (kept,) = json.loads(noisy_labels.RESULT.read_text())["rows"]
    assert (kept[BEST], kept[LAST], kept[TEST]) == (0.7, 0.25, 0.75)
    again, ran = study()
    again.tune("co_teaching")
    again.run("co_teaching", "en", 0.4, 0)
    assert len(ran) == 4 and again.result["rows"] == [kept]
    assert "| `co_teaching` | 50.0 | 70.0 | 70.0 | 0.025 |" in report(again.result)
    other, _ = study("pair")
    assert other.result["rows"] == [] and other.result["tuning"] == []


def test_the_tables_stand_between_their_marks(tmp_path, monkeypatch):
    docs = tmp_path / "docs.md"
    monkeypatch.setattr(noisy_labels, "DOCS", docs)
    docs.write_text(f"before\n{noisy_labels.BEGIN}old\n{noisy_labels.END}after\n")
    noisy_labels.write_docs("new")
    assert docs.read_text() == f"before\n{noisy_labels.BEGIN}\nnew\n\n{noisy_labels.END}after\n"
    docs.write_text("no marks")
    with pytest.raises(RuntimeError, match="expected the lines"):
        noisy_labels.write_docs("new")
    assert docs.read_text() == "no marks" and noisy_labels.BEGIN in (
        noisy_labels.Path(noisy_labels.__file__).parents[1] / "docs/noisy_labels.md"
    ).read_text(encoding="utf-8")
