"""The benchmark of single passes runs those of the form that it names, and relates them to a copy."""

import pytest
import torch

from benchmarks import passes
from exemplar_norm.kernels import compiled_passes


def test_every_pass_is_measured_in_both_layouts(result_of, capsys):
    rows = result_of(passes, "--rounds", "2", "--batch", "2", "--shapes", "8x6", "--forms", "eager")["rows"]
    names = [("copy", ""), *(("eager", name) for name in passes.TRAFFIC)]
    assert [(r["layout"], r["form"], r["pass"]) for r in rows] == [
        (layout, *name) for layout in ("NCHW", "NHWC") for name in names
    ]
    copy, *others = rows[: len(names)]
    assert copy["share"] == 1
    for row in others:
        # A copy moves two tensors of X's size.
        expected = copy["ms"] / row["ms"] * passes.TRAFFIC[row["pass"]] / 2
        assert row["share"] == pytest.approx(expected, rel=1e-12)
    assert "| 2×8×6² |" in capsys.readouterr().out


def test_a_form_runs_its_own_passes(monkeypatch):
    called = []
    for name in ("moments", "affine", "reduce", "input_grad"):
        own = getattr(compiled_passes.passes_cpu, name)

        def spy(*args, name=name, own=own):
            called.append(name)
            return own(*args)

        monkeypatch.setattr(compiled_passes, name, spy)
    x, dy = torch.randn(2, 2, 4, 3, 3)
    runs = passes.passes_of("compiled", x, dy)
    called.clear()
    for run in runs.values():
        run()
    assert called == ["moments", "affine", "reduce", "input_grad"]
    called.clear()
    for run in passes.passes_of("eager", x, dy).values():
        run()
    assert not called
