"""The study of the gates: what a look reads and leaves, how a series goes on, what the pictures show."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from torch import nn

from benchmarks import finetune, gate_choice, gate_diagnosis, gate_pictures
from exemplar_norm import convert_norm, record_ratios
from tasks.classification.digits import DigitsDataModule
from tasks.classification.styles import STYLES
from tasks.report.colors import NORM_COLORS

LAYERS, STEPS = 3, (0, 21, 42)


def row(case, variant, step, layer, dead=False):
    """Made-up figures that differ by layer, step and variant."""
    size = (1 + layer) * (1 + step) * (2 if variant in ("published", "en") else 3)
    gradients = {"ratio": 0.1, "gate.conv.weight": 0.3, "gate.fc2.bias": 0.4, "weight": 0.2, "bias": 0.6}
    return {
        "case": case, "seed": 4, "variant": variant, "step": step, "layer": f"layer{layer}",
        "normalizers": ["in", "ln", "bn"], "channels": 32, "reduction": 16, "reduced": 2 + layer,
        "v_spread": size / 100, "v_mean_norm": 2.0, "v_std_norm": size / 50, "seen_std_norm": size / 10,
        "z_rms": [0.0, 1.0, 1.0], "ratio_mean": [0.5, 0.3, 0.2 + layer / 100 + step / 1000],
        "ratio_std": [0.0, 0.0, 0.0] if step == 0 else [size / 1e4, size / 2e4, 0.0], "saturated": 0.25,
        "output_std": 1.0 + step, "gradients": {key: 0.0 if dead else g for key, g in gradients.items()},
    }  # fmt: skip


def rows():
    trained = [
        row(case, variant, step, layer)
        for case in ("styled", "fashion") for variant in gate_diagnosis.VARIANTS
        for step in STEPS for layer in range(LAYERS)
    ]  # fmt: skip
    tuned = [
        row("lite0", variant, step, layer, dead=variant == "en, rate 1" and step == 42)
        for variant in gate_diagnosis.RATES for step in STEPS for layer in range(LAYERS)
    ]  # fmt: skip
    return trained + tuned


@pytest.fixture
def result():
    machine = {"cpu": "a processor", "threads": 1, "torch": "2.0", "date": "2020-02-02"}
    return {"machine": machine, "rows": rows()}


# --- measuring


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    net(torch.zeros(1, 3, 6, 6))
    return convert_norm(net, "en", reduction=2, correlations="standardised", preserve=False).train()


def test_a_look_reads_the_training_mode_and_leaves_nothing():
    net, x = network(), torch.randn(6, 3, 6, 6)
    nn.init.normal_(net[1].gate.fc2.weight)
    net(torch.randn(6, 3, 6, 6))  # averages that are not those of the start
    with torch.no_grad():
        net[1].gate.fc1.weight.mul_(1)  # a step of an optimiser, behind which they are used
    before = {key: value.clone() for key, value in net.state_dict().items()}
    (found,) = gate_diagnosis.look(net, x, lambda y: F.cross_entropy(y, torch.tensor([0, 1, 2, 3, 0, 1])))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    with record_ratios(net) as ratios:
        hidden = net[1](net[0](x))
    # Four digits are kept.
    assert found["ratio_std"] == pytest.approx(ratios["1"].std(0, correction=0).tolist(), rel=1e-3)
    assert found["output_std"] == pytest.approx(float(hidden.detach().std()), rel=1e-3)
    assert (found["channels"], found["reduced"], len(found["gradients"])) == (8, 4, 8)


def test_training_is_watched_and_not_changed(monkeypatch):
    monkeypatch.setattr(gate_choice, "EPOCHS", 2)
    monkeypatch.setattr(gate_diagnosis, "EVERY", 3)
    monkeypatch.setattr(gate_diagnosis, "VARIANTS", ("published",))
    digits = lambda seed: DigitsDataModule(seed=seed, styles=list(STYLES), train_samples=130)  # noqa: E731
    monkeypatch.setitem(gate_diagnosis.DATA, "styled", digits)
    built = []
    build = gate_choice.build
    monkeypatch.setattr(gate_choice, "build", lambda *a: built.append(build(*a)) or built[-1])
    found = gate_diagnosis.train("styled", seed=4)
    # 130 digits: two batches of 64 an epoch; a look before steps 0 and 3, and at the end.
    assert sorted({r["step"] for r in found}) == [0, 3, 4]
    names = [name for name, module in built[0].named_modules() if hasattr(module, "gate")]
    assert [r["layer"] for r in found] == names * 3
    assert all(max(r["ratio_std"]) == 0 for r in found if r["step"] == 0)
    assert any(max(r["ratio_std"]) > 0 for r in found if r["step"] == 4)
    # The same loop without a look gives the same weights, but for rounding in another form of the gate: none.
    data = digits(4)
    data.setup("fit")
    alone = build("published", 4, data.num_classes)
    gate_choice.train(alone, gate_choice.SeededDataset(data.examples("train"), 4), 4)
    for own, theirs in zip(alone.parameters(), built[0].parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_fine_tuning_is_looked_at_at_both_rates(monkeypatch):
    images, labels = torch.randn(16, 3, 6, 6), torch.arange(16) % 4

    def build():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
        return net.train()

    case = finetune.Case(
        build, lambda indices, seed: (images[indices], labels[indices]), 16, lambda: (images, labels),
        F.cross_entropy, lambda logits, targets: 0.0,
    )  # fmt: skip
    monkeypatch.setattr(finetune, "lite0", lambda: case)
    monkeypatch.setattr(gate_diagnosis, "TUNED_STEPS", 4)
    found = gate_diagnosis.tune(seed=1)
    assert [(r["variant"], r["step"]) for r in found] == [
        ("en, rate 1", 0), ("en, rate 1", 4), ("en", 0), ("en", 4)
    ]  # fmt: skip
    slow, fast = found[2]["gradients"]["gate.fc2.bias"], found[0]["gradients"]["gate.fc2.bias"]
    # The same network and images: the rate alone differs, 1 beside 1/C. Four digits are kept.
    assert slow == pytest.approx(fast / 8, rel=1e-3) and fast > 0


# --- the series


@pytest.fixture
def series(monkeypatch, tmp_path):
    """run(*cases) → the cases that were computed."""
    computed = []

    def rows_of(case, seed):
        computed.append(case)
        keep = [r for r in rows() if r["case"] == case]
        return [{key: value for key, value in r.items() if key not in ("case", "seed")} for r in keep]

    monkeypatch.setattr(gate_diagnosis, "train", rows_of)
    monkeypatch.setattr(gate_diagnosis, "tune", lambda seed: rows_of("lite0", seed))

    def run(*cases):
        computed.clear()
        options = ["--cases", *cases, "--result", str(tmp_path / "result.json"), "--to", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["gate_diagnosis", *options])
        threads = torch.get_num_threads()
        try:
            gate_diagnosis.main()
        finally:
            torch.set_num_threads(threads)
        return list(computed)

    return run


def test_a_series_goes_on_where_it_ended(series, tmp_path, capsys):
    assert series("styled") == ["styled"]
    assert "gate-gradients: left out, as its cases are missing" in capsys.readouterr().out
    assert series("styled", "fashion", "lite0") == ["fashion", "lite0"]
    assert series("styled", "lite0") == []
    told = gate_diagnosis.read(tmp_path / "result.json")
    by_name = lambda rows: sorted(json.dumps(r, sort_keys=True) for r in rows)  # noqa: E731
    assert by_name(told["rows"]) == by_name(rows())
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(gate_pictures.PICTURES)


def test_figures_of_two_machines_are_not_mixed(series, tmp_path):
    series("styled")
    path = tmp_path / "result.json"
    told = json.loads(path.read_text())
    told["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(told))
    with pytest.raises(RuntimeError, match=r"expected measurements of this machine, got torch 1\.0 instead"):
        series("fashion")


# --- pictures and table


def test_spread_has_a_line_a_layer_and_their_median(result):
    panels = gate_pictures.draw_spread(result).axes
    assert len(panels) == 3 * 4
    lines = panels[0].lines
    assert len(lines) == LAYERS + 1
    own = [r for r in rows() if (r["case"], r["variant"]) == ("styled", "published")]
    by_layer = np.array([[r["v_spread"] for r in own if r["layer"] == f"layer{k}"] for k in range(LAYERS)])
    for k in range(LAYERS):
        np.testing.assert_allclose(lines[k].get_ydata(), by_layer[k])
    np.testing.assert_allclose(lines[LAYERS].get_ydata(), np.median(by_layer, 0))
    # λ is 1/K at the start: no point there.
    assert panels[8].lines[LAYERS].get_xdata().tolist() == list(STEPS[1:])


def test_gradients_of_the_last_layer_in_the_colours_of_the_normalizers(result):
    (first, second, ratio, scale) = gate_pictures.draw_gradients(result).axes
    norms = {line.get_label(): line for line in second.lines}
    assert norms["γ"].get_ydata() == pytest.approx([0.2] * 3)
    assert norms["gate"].get_ydata() == pytest.approx([0.5] * 3)  # √(0.3² + 0.4²)
    assert len(first.lines[0].get_xdata()) == 2 and "from step 42" in first.texts[0].get_text()
    assert [to_hex(line.get_color()) for line in ratio.lines] == [NORM_COLORS["bn"]] * 2
    assert ratio.lines[1].get_ydata() == pytest.approx([0.2 + 0.02 + step / 1000 for step in STEPS])
    assert [to_hex(line.get_color()) for line in scale.lines] == [NORM_COLORS["en"]] * 2
    assert scale.lines[0].get_ydata() == pytest.approx([1, 22, 43])


def test_reduced_shows_the_end_of_training(result):
    left, right = gate_pictures.draw_reduced(result).axes
    assert len(left.lines) == 5 and len(right.lines) == 4
    last = [r for r in rows() if (r["case"], r["variant"], r["step"]) == ("styled", "published", 42)]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [r["v_std_norm"] for r in last])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [max(r["ratio_std"]) for r in last])
    # Moved sideways by less than half the way to the next power of 2.
    np.testing.assert_allclose(left.lines[0].get_xdata(), [r["reduced"] for r in last], rtol=0.25)


def test_the_table_has_both_gates_at_the_end(result):
    lines = gate_diagnosis.table(result["rows"]).splitlines()
    assert len(lines) == 2 + LAYERS
    # Layer 1 at step 42: 2 · 43 · 2 and 2 · 43 · 3 as made up.
    assert (
        lines[3] == "| `layer1` | 32 | 3 / 3 | 1.7 / 2.6 | 17 / 26 | 25 % / 25 % | 0.02 / 0.03 | 0.1 / 0.1 |"
    )
    assert gate_diagnosis.table([]) == "not measured yet\n"
