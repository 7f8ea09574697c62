"""What the benchmark compares computes the same, and what it counts is right."""

import pytest
import torch
from torch import nn

from benchmarks import cost, layer, measure
from benchmarks.candidates import CANDIDATES, PlainSwitchNorm2d, TextbookExemplarNorm2d, training_pass
from exemplar_norm import ExemplarNorm2d, SwitchNorm2d

NOT_BUILT = {name for name in CANDIDATES if "compiled" not in name}  # by a compiler, for minutes


def test_textbook_form_computes_exemplar_norm():
    torch.manual_seed(0)
    ours, textbook = ExemplarNorm2d(6).double(), TextbookExemplarNorm2d(6).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    textbook.load_state_dict(ours.state_dict())
    x, dy = torch.randn(2, 4, 6, 5, 5, dtype=torch.float64)
    x.requires_grad_()
    results = [training_pass(module, x, dy)() for module in (ours, textbook)]
    for got, want in zip(*results, strict=True):
        # float64 rounding over sums of at most 4·5·5 terms of size O(10)
        assert torch.allclose(got, want, rtol=0, atol=1e-11)
    assert torch.allclose(ours.running_var, textbook.running_var, rtol=0, atol=1e-14)


def test_plain_switch_norm_computes_switch_norm():
    torch.manual_seed(0)
    ours, plain = SwitchNorm2d(6).double(), PlainSwitchNorm2d(6).double()
    with torch.no_grad():
        for name in ("weight", "bias", "mean_weight", "var_weight"):
            value = getattr(ours, name).normal_()
            getattr(plain, name).copy_(value.view_as(getattr(plain, name)))
    x, dy = torch.randn(2, 4, 6, 5, 5, dtype=torch.float64)
    x.requires_grad_()
    got, want = (torch.autograd.grad(layer(x), x, dy)[0] for layer in (plain, ours))
    # float64 rounding; the plain form's E[x²] − m² loses a digit or two.
    assert torch.allclose(plain(x), ours(x), rtol=0, atol=1e-12)
    assert torch.allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_saved_bytes(layout):
    x = torch.randn(8, 32, 28, 28).to(memory_format=layout).requires_grad_()
    x_bytes = x.untyped_storage().nbytes()
    batch_norm, exemplar = nn.BatchNorm2d(32), ExemplarNorm2d(32)

    def ratio(module):
        return measure.saved_bytes(lambda: module(x), list(module.parameters())) / x_bytes

    # BatchNorm keeps X and two vectors of C.
    assert ratio(batch_norm) == pytest.approx(1.0, abs=0.01)
    # EN keeps X and a few dozen arrays of N·C numbers, each 1/784 of X.
    assert 1.0 <= ratio(exemplar) < 1.06
    # The textbook form keeps at least the three normalized copies and their products.
    assert ratio(TextbookExemplarNorm2d(32)) > 5


def test_peak_bytes_sees_what_is_held_at_once():
    def run():
        first = torch.ones(1000)  # 4,000 bytes
        second = torch.ones(500)  # 2,000 more
        del first, second
        torch.ones(100)

    # The allocator may round sizes up to its alignment, 64 bytes.
    assert 6000 <= measure.peak_bytes(run) <= 6000 + 2 * 64


def test_interleaved_takes_seldom_runs_in_every_sixth_round():
    counts = {"often": 0, "seldom": 0}

    def count(name):
        counts[name] += 1

    runs = {name: (lambda name=name: count(name)) for name in counts}
    seconds = measure.interleaved(runs, rounds=12, seldom=frozenset({"seldom"}))
    assert counts == {"often": 13, "seldom": 3}  # a warm-up each
    assert [len(seconds[name]) for name in ("often", "seldom")] == [12, 2]


def test_layer_benchmark_reports_every_candidate(result_of, capsys):
    small = ("--rounds", "2", "--batch", "2", "--shapes", "8x6")
    result = result_of(layer, *small, "--candidates", *NOT_BUILT)
    assert {row["candidate"] for row in result["rows"]} == NOT_BUILT
    assert {row["layout"] for row in result["rows"]} == {"NCHW", "NHWC"}
    assert all(row["ratio"] == 1 for row in result["rows"] if row["candidate"] == "BN")
    assert result["machine"]["torch"] == torch.__version__
    assert "| 2×8×6² |" in capsys.readouterr().out


def test_cost_counts_what_each_normalizer_adds():
    rows = {norm: cost.cost("resnet18", norm, 64) for norm in ("bn", "sn", "en")}
    layers = [m for m in _resnet18().modules() if isinstance(m, nn.BatchNorm2d)]
    # SN: two logits for each of three normalizers.
    assert rows["sn"]["parameters"] - rows["bn"]["parameters"] == 6 * len(layers)
    # EN: γ and β for two more normalizers, C gate weights, and the hidden layers 9 → 50 → 3 with biases.
    per_layer = 50 * 9 + 50 + 3 * 50 + 3
    added = sum(5 * m.num_features + per_layer for m in layers)
    assert rows["en"]["parameters"] - rows["bn"]["parameters"] == added
    # Two operations a multiply-add: z zᵀ with 3·3·C/32 products, FC₁ and FC₂.
    products = sum(9 * m.num_features // 32 + 450 + 150 for m in layers)
    assert rows["en"]["flops"] - rows["bn"]["flops"] == 2 * products
    assert rows["sn"]["flops"] == rows["bn"]["flops"]


def _resnet18():
    from torchvision.models import resnet18

    with torch.device("meta"):
        return resnet18()
