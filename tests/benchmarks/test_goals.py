"""The table of goals reads what the benchmarks write, and goes where its marks are."""

import json

import pytest

from benchmarks import document as document_marks
from benchmarks import goals, measure


def layer(candidate, layout, ms, size=28, **more):
    return {
        "channels": 8,
        "size": size,
        "layout": layout,
        "candidate": candidate,
        "ms": ms,
        "saved": 1,
        **more,
    }


def step(candidate, mode="training step", **more):
    return {
        "network": "resnet50", "mode": mode, "candidate": candidate, "batch": 8, "size": 128, **more,
    }  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Lines of the tables, by their title."""
    results = {
        "layer": [
            *(layer("BN", layout, 2.0, size) for layout in ("NCHW", "NHWC") for size in (28, 56, 7)),
            layer("EN eager", "NCHW", 1.0, launches_forward=40, launches_backward=60),
            layer("EN eager", "NCHW", 3.0, 56, launches_forward=44, launches_backward=60),
            layer("EN eager", "NHWC", 2.5, launches_forward=41, launches_backward=61),
        ],
        "layer-cpu-bfloat16": [
            layer(name, layout, ms)
            for name, ms in (("BN", 2.0), ("EN eager", 2.4))
            for layout in ("NCHW", "NHWC")
        ],
        "layer-cuda-float32": [
            *(layer(name, "NCHW", ms, 1000, batch=1, launches_forward=5, launches_backward=4)
              for name, ms in (("BN", 1.0), ("EN triton", 0.9))),
            *(layer(name, "NCHW", ms, batch=1) for name, ms in (("BN", 1.0), ("EN triton", 7.0))),
        ],
        "passes-cuda-bfloat16": [
            {"form": form, "pass": name, "share": share}
            for form, name, share in (("triton", "dX", 0.9), ("triton", "output", 0.95), ("eager", "dX", 0.1))
        ],
        "network": [step("bn"), step("en", ms_ratio=1.07, saved_ratio=1.04)],
        "network-32x224": [step("en", ms_ratio=1.03, saved_ratio=1.01)],
        "network-compiled": [step("en", ms_ratio=1.02, compile_ratio=1.4, graph_breaks=0)],
        "network-compiled-64x224-cuda-bfloat16": [step("en", ms_ratio=1.01)],
    }  # fmt: skip
    for name, rows in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": {"date": "2026-01-02"}, "rows": rows}))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return {line.split(" | ")[0][2:]: line for line in goals.table().splitlines()}


def test_every_figure_stands_beside_its_goal(table):
    nothing = "not measured / not measured"
    assert table["eager, ≥ 28², × BN"].endswith(
        f"| ≤ 1.0 / ≤ 1.2 | {nothing} | 0.50–1.50 / 1.25–1.25 | 1.20–1.20 / 1.20–1.20 |"
    )
    assert table["eager, 7², × BN"].endswith(f"| {nothing} | {nothing} | {nothing} |")
    assert table["EN eager, operations forward / backward, NCHW"].endswith(
        "| not measured | 40–44 / 60 | not measured |"
    )
    assert table["training step, eager, 8 images of 128², × BN"].endswith("| ≤ 1.08 | 2026-01-02 | 1.07 |")
    assert table["training step, eager, 32 images of 224², × BN"].endswith("| 1.03 |")
    assert table["saved activations, 32 images of 224², × BN"].endswith("| ≤ 1.02 | 2026-01-02 | 1.010 |")
    assert table["compile time of it, × BN"].endswith("| 1.40 |")
    assert table["graph breaks"].endswith("| 0 | 2026-01-02 | 0 |")


def test_goals_on_a_gpu(table):
    assert table["output and dX, share of a copy's bandwidth"].endswith("| not measured | 0.90–0.95 |")
    # Smaller layers are left out.
    assert table["layer, ≥ 32 MB, × BN"].endswith(
        "| 0.90–0.90 / not measured | not measured / not measured |"
    )
    assert table["launches forward / backward, NCHW"].endswith("| ≤ 5 / ≤ 6 | 5 / 4 | not measured |")
    assert table["ResNet-50 step, compiled, × compiled BN"].endswith("| ≤ 1.03 | not measured | 1.01 |")


def test_goals_without_a_result_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    tables = [text.splitlines()[2:] for text in goals.table().split("\n\n")]
    assert len(tables) == 3
    assert all(line.endswith("not measured |") for lines in tables for line in lines)


def test_write_replaces_what_is_between_the_marks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(goals, "ROOT", tmp_path)
    monkeypatch.setattr(
        goals, "TABLES", {"one": ("page.md", lambda: "| 1 |"), "two": ("page.md", lambda: "| 2 |")}
    )
    monkeypatch.setattr("sys.argv", ["goals", "--write"])
    page, text = tmp_path / "page.md", "a\n<!-- one -->\nold\n<!-- /one -->\nb\n"
    page.write_text(text)
    goals.main()
    assert page.read_text() == text.replace("old", "| 1 |")
    assert f"not written: {page} has no lines <!-- two -->" in capsys.readouterr().out
    page.write_text(text)
    monkeypatch.setattr("sys.argv", ["goals"])
    goals.main()
    assert page.read_text() == text and "| 2 |" in capsys.readouterr().out


def test_every_table_has_its_place():
    for name, (document, _) in goals.TABLES.items():
        assert document_marks.has_marks(goals.ROOT / document, f"<!-- {name} -->", f"<!-- /{name} -->")


def test_marks_in_the_wrong_order_are_none(tmp_path):
    page = tmp_path / "page.md"
    assert not document_marks.has_marks(page, "begin", "end")
    page.write_text("end begin")
    with pytest.raises(RuntimeError, match="expected the lines 'begin' and 'end'"):
        document_marks.replace_between(page, "begin", "end", "text")
    assert page.read_text() == "end begin"
