"""`python -m tasks.ratios` on tiny runs: the table, the numbers, the page in a browser, bad input."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from browser import Browser, needs_browser

from exemplar_norm import record_ratios
from tasks.classification import load_classifier
from tasks.classification.digits import DigitsDataModule
from tasks.ratios.__main__ import main
from tasks.ratios.space import ratio_space
from tasks.ratios.worth import read_worth
from tasks.report.colors import NORM_COLORS
from tasks.report.ratio_section import ratio_sections

pytestmark = pytest.mark.slow

LAYERS, K, SAMPLES = 17, 3, 270


@pytest.fixture
def run(fit, runs, capsys):
    """run(norm) → folder of a run of one short epoch."""

    def make(norm):
        outcome = fit("--name", norm, "--model.norm", norm, "--trainer.max_epochs", "1")
        assert outcome.code == 0, outcome.err
        return runs / norm

    return make


def test_table_numbers_and_page(run, tmp_path, capsys):
    folder = run("en")
    main(["--ckpt", str(folder), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "λ shuffled" in out and "spread" in out
    table = pq.read_table(tmp_path / "out" / "ratios.parquet").to_pydict()
    assert list(table) == ["sample", "class", "layer", "normalizer", "ratio"]
    data = DigitsDataModule(image_size=16, batch_size=64)
    data.setup("fit")
    network, rows, hits = load_classifier(folder).network, [], 0
    for images, labels, indices in data.val_dataloader():
        with record_ratios(network) as ratios, torch.no_grad():
            hits += int((network(images).argmax(1) == labels).sum())
        for place, (label, index) in enumerate(zip(labels.tolist(), indices.tolist(), strict=True)):
            for name, ratio in ratios.items():
                for key, value in zip(("in", "ln", "bn"), ratio[place].tolist(), strict=True):
                    rows.append((data.sample_name("val", index), str(label), name, key, value))
    assert len(rows) == SAMPLES * LAYERS * K
    assert [*zip(*(table[name] for name in list(table)[:4]), strict=True)] == [row[:4] for row in rows]
    # Batches of other sizes: float32 rounding.
    assert table["ratio"] == pytest.approx([row[4] for row in rows], abs=1e-6)
    worth = read_worth(tmp_path / "out" / "shuffle.csv")
    assert (worth.split, worth.samples, worth.metric) == ("val", SAMPLES, "top-1")
    assert worth.own == pytest.approx(hits / SAMPLES, rel=1e-6)
    assert "Shuffling λ between samples" in out and list(worth.ways) == ["shuffled", "mean", "uniform"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Shuffling λ between samples" in page and "λ of another sample" in page
    assert "could not be drawn" not in page and "Is λ one per sample?" in page
    assert {"heat.png", "heat.svg", "space-classes.png", "atypical.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert [section.title for section in ratio_sections(folder)] == [
        "Ratios of the normalizers",
        "Ratios over epochs",
    ]


@pytest.mark.slow
@needs_browser
def test_a_comparison_opens_in_a_browser(run, tmp_path):
    folders = [str(run(norm)) for norm in ("en", "sn")]
    output = tmp_path / "compared"
    main(["--ckpt", *folders, "--limit", "60", "--output", str(output)])
    assert pq.read_metadata(output / "ratios-en.parquet").num_rows == 54 * LAYERS * K  # every fifth of 270
    drawn = (output / "compared-in-mean.svg").read_text()
    assert NORM_COLORS["in"] in drawn and not any(NORM_COLORS[key] in drawn for key in ("ln", "bn"))
    browser = Browser(tmp_path / "profile")
    try:
        for width in (1280, 400):
            assert browser.open(output / "index.html", width) == []
            assert browser.problems == []
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelectorAll('.failed').length") == 0
            assert browser.evaluate("document.querySelectorAll('svg').length") > 15
    finally:
        browser.close()


def error_of(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_bad_input_is_one_line(run, tmp_path, capsys):
    assert "holds none" in error_of(capsys, "--ckpt", tmp_path / "nowhere")
    assert "unknown option --splt" in error_of(capsys, "--ckpt", tmp_path, "--splt", "val")
    folder = run("bn")
    assert "expected EN, SN or SSN layers, got norm bn" in error_of(capsys, "--ckpt", folder)
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    assert "lies in no run folder" in error_of(capsys, "--ckpt", alone)


@pytest.mark.parametrize("norm", ["en", "sn"])
def test_a_network_that_diverged_is_one_line(run, tmp_path, capsys, norm):
    checkpoint = run(norm) / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=False)
    for value in saved["state_dict"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    torch.save(saved, checkpoint)
    error = error_of(capsys, "--ckpt", checkpoint, "--output", tmp_path / "out")
    assert "expected a network whose λ are numbers, got others in " in error and str(checkpoint) in error
    assert not [*(tmp_path / "out").iterdir()]


def test_samples_fall_into_the_groups_that_were_planted():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 20)
    centres = generator.uniform(size=(6, 9))
    vectors = (centres[labels] + 0.001 * generator.normal(size=(120, 9))).astype(np.float32)
    vectors[17] += 5
    space = ratio_space(np.delete(vectors, 17, 0), np.delete(labels, 17))
    assert space.information == pytest.approx(1) and space.same_class[0] == 1
    # 5 classes of 20 and one of 19: Σ n (n − 1) / (N (N − 1)).
    assert space.same_class[1] == pytest.approx((5 * 20 * 19 + 19 * 18) / (119 * 118))
    for centre, others in zip(space.centres, space.neighbours, strict=True):
        assert len(set(space.cluster[[centre, *others]])) == 1 and centre not in others
    assert ratio_space(vectors, None).atypical[0] == 17
    assert ratio_space(np.full((9, 4), 0.25, np.float32), None) is None
