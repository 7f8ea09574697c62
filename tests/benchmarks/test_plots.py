"""The pictures show what the results say."""

import json

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from benchmarks import candidates, drawing, measure, network, plots
from tasks.report.colors import NORM_COLORS

MACHINE = {
    "cpu": "a processor", "threads": 1, "torch": "2.0", "memory": "kept by the process", "date": "2020-02-02",
}  # fmt: skip
TIME = {"ms": 2.0, "p20": 1.5, "p80": 3.0}


def layers():
    return [
        {"channels": 64, "size": size, "batch": 32, "layout": layout, "candidate": name, **TIME,
         "saved": 1.0, "peak": 3.0 + size / 100}
        for size in (56, 7) for layout in ("NCHW", "NHWC") for name in (*candidates.CANDIDATES, "new")
    ]  # fmt: skip


def networks(compiled):
    return [
        {"network": net, "mode": mode, "candidate": name, "compiled": compiled, "batch": 8, "size": 128,
         "ms": 2.0 + k, "p20": 1.5 + k, "p80": 3.0 + k}
        for net in ("resnet50", "other") for mode in ("training step", "inference")
        for k, name in enumerate(network.CANDIDATES)
    ]  # fmt: skip


def growths():
    return [
        {"factor": factor, "value": value, "candidate": name, **TIME, "saved": 2**20 * value, "peak": 2**21,
         "batch": 32, "channels": 128, "resolution": 28}
        for factor, names in (("batch", ("BN", "EN eager")), ("normalizers", ("EN eager",)))
        for value in (1, 2, 4) for name in names
    ]  # fmt: skip


def result(rows):
    return {"machine": MACHINE, "rows": rows}


RESULTS = {
    "layer": result(layers()),
    "network": result(networks(False)),
    "network-compiled": result(networks(True)),
    "growth": result(growths()),
}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(names of results) → the pictures that are drawn of them."""

    def run(*names):
        for name in names:
            (tmp_path / f"{name}.json").write_text(json.dumps(RESULTS[name]))
        monkeypatch.setattr(measure, "RESULTS", tmp_path)
        monkeypatch.setattr("sys.argv", ["plots", "--to", str(tmp_path / "images")])
        plots.main()
        return {path.stem: path for path in (tmp_path / "images").glob("*")}

    return run


def test_draws_every_picture(draw, capsys):
    drawn = draw(*RESULTS)
    assert set(drawn) == set(plots.PLOTS)
    for path in drawn.values():
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width == round(drawing.WIDTH * drawing.DPI)
        assert path.stat().st_size < 150_000
    assert "left out" not in capsys.readouterr().out


def test_what_has_no_result_is_left_out_and_said(draw, capsys):
    assert set(draw("growth")) == {"growth"}
    told = capsys.readouterr().out
    assert "layer: left out, as there is no layer.json" in told
    assert "network: left out, as there is no network.json or network-compiled.json" in told


def test_candidates_have_their_normalizers_colours_and_differ():
    styles = [drawing.style_of(name) for name in candidates.CANDIDATES]
    assert len(set(styles)) == len(styles)
    assert {drawing.style_of(n)[0] for n in candidates.CANDIDATES if n.startswith("EN")} == {
        NORM_COLORS["en"]
    }
    assert (
        drawing.style_of("BN")[0] == NORM_COLORS["bn"]
        and drawing.style_of("SN plain")[0] == NORM_COLORS["sn"]
    )


def test_layer_shows_ratios_to_batch_norm_of_the_same_shape():
    figure = plots.draw_layer({"layer": RESULTS["layer"]})
    top, bottom = figure.axes
    assert [axes.get_title(loc="left") for axes in (top, bottom)] == ["NCHW", "NHWC"]
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["64×56²", "64×7²"]
    bars = top.containers
    assert len(bars) == 2 * len(candidates.CANDIDATES)  # with a new one, and without BN
    assert {float(bar.lines[0].get_ydata()[0]) for bar in bars} == {1.0}
    (whisker,) = bars[0].lines[2]
    assert [float(y) for _, y in whisker.get_segments()[0]] == [0.75, 1.5]
    assert top.get_yscale() == "log"
    assert (
        "a processor, 1 thread, torch 2.0, memory kept by the process, 2020-02-02" in figure.get_supxlabel()
    )


def test_saved_shows_the_range_over_the_shapes():
    saved, peak = plots.draw_saved({"layer": RESULTS["layer"]}).axes
    assert {bar.get_width() for bar in saved.patches} == {1.0}
    assert {bar.get_width() for bar in peak.patches} == {3.07}
    assert {text.get_text() for text in peak.texts} == {"3.07–3.56"}
    assert [label.get_text() for label in saved.get_yticklabels()][-1] == "BN"  # at the top


def test_network_shows_ratios_eager_and_compiled():
    figure = plots.draw_network({name: RESULTS[name] for name in plots.NETWORKS})
    step, inference = figure.axes
    assert [axes.get_title(loc="left") for axes in (step, inference)] == ["training step", "inference"]
    assert [label.get_text() for label in inference.get_xticklabels()] == [
        "resnet50\neager", "other\neager", "resnet50\ncompiled", "other\ncompiled",
    ]  # fmt: skip
    names = list(network.CANDIDATES)[1:]
    heights = [bar.get_height() for bar in step.patches[: len(names)]]
    assert heights == [(2 + k) / 2 for k in range(1, len(names) + 1)]
    assert to_hex(step.patches[names.index("en fused")].get_facecolor()) == NORM_COLORS["en"]


def test_growth_has_a_column_a_factor_and_a_guide_in_proportion():
    figure = plots.draw_growth({"growth": RESULTS["growth"]})
    time, mixtures = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (time, mixtures)] == ["batch", "normalizers"]
    guide = time.lines[-1].get_ydata()
    assert guide[2] / guide[0] == pytest.approx(4) and guide[2] < 2.0
    assert [float(tick) for tick in time.get_xticks()] == [1, 2, 4]
    assert "on 32×128×28², but for what grows" in figure.get_supxlabel()


def test_few_ticks_of_many_values():
    assert plots.thinned([1, 2, 4, 8, 16, 32, 64, 128]) == [2, 8, 32, 128]
    assert plots.thinned([7, 14, 28, 56, 112]) == [7, 28, 112]
    assert plots.thinned([1, 2, 3, 4]) == [1, 2, 3, 4]
