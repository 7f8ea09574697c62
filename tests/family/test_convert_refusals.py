"""convert_norm and sync_norm where something would be lost, or is left alone: ties, overrides, subclasses."""

import logging

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, ExemplarNorm2d, SwitchNorm2d, convert_norm, sync_norm


def tied_norms():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model[2].weight = model[0].weight
    return model


def tied_elsewhere():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    model[1].bias = model[0].bias
    return model


def tied_averages():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    model[1].running_mean = model[0].running_mean
    return model


def overridden():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    model[0].forward = lambda x: 2 * x
    return model


LOST = {
    "weight": (tied_norms, "a weight that is tied to another", "[02]"),
    "bias": (tied_elsewhere, "a bias that is tied to another", "0"),
    "running_mean": (tied_averages, "a running_mean that is tied to another", "[01]"),
    "forward": (overridden, "a forward of its own", "0"),
}


@pytest.mark.parametrize("convert", [convert_norm, sync_norm])
@pytest.mark.parametrize("case", LOST)
def test_ties_and_an_own_forward_are_an_error_that_names_the_layer(case, convert):
    make, what, _ = LOST[case]
    model = make()
    before = list(model.modules())
    with pytest.raises(ValueError, match=f"^0: expected a BatchNorm2d without .*got {what}: .*skip="):
        convert(model)
    assert list(model.modules()) == before


@pytest.mark.parametrize("case", LOST)
def test_they_are_no_hindrance_to_layers_that_stay(case):
    make, _, skip = LOST[case]
    model = make()
    model.append(nn.BatchNorm2d(8))
    convert_norm(model, skip=skip)
    assert type(model[0]) is nn.BatchNorm2d and type(model[-1]) is ExemplarNorm2d
    assert convert_norm(make(), "bn")[0].eps == 1e-5


def test_a_shared_module_is_not_a_tie():
    norm = nn.BatchNorm2d(8)
    model = convert_norm(nn.Sequential(norm, nn.Sequential(norm)))
    assert model[0] is model[1][0] and type(model[0]) is ExemplarNorm2d


def test_hooks_inside_a_layer_of_the_family_are_an_error_when_it_is_built_anew():
    model = nn.Sequential(NORMS["en"](8))
    model[0].gate.register_forward_hook(lambda *_: None)
    assert convert_norm(model, "en")[0] is model[0]
    with pytest.raises(ValueError, match=r"^0: expected a ExemplarNorm2d without .*_forward_hooks"):
        convert_norm(model, "en", momentum=0.5)


@pytest.mark.parametrize("convert", [convert_norm, sync_norm])
def test_parts_of_a_layer_left_alone_stay(convert):
    timm = pytest.importorskip("timm")
    split = timm.layers.SplitBatchNorm2d(8)
    model = nn.Sequential(split, nn.BatchNorm2d(8))
    parts = list(split.modules())
    convert(model)
    assert model[0] is split and list(split.modules()) == parts and type(model[1]) is not nn.BatchNorm2d
    assert [type(m) for m in split.aux_bn] == [nn.BatchNorm2d]


def test_the_log_names_a_layer_left_alone_and_not_its_parts(caplog):
    timm = pytest.importorskip("timm")
    model = nn.Sequential(timm.layers.SplitBatchNorm2d(8), nn.BatchNorm2d(8), SwitchNorm2d(8))
    with caplog.at_level(logging.INFO, logger="exemplar_norm"):
        convert_norm(model)
    assert [r.getMessage() for r in caplog.records] == [
        "convert_norm left alone: 1 × SplitBatchNorm2d (0), 1 × SwitchNorm2d (2)"
    ]


class NormalizedNet(nn.Module):
    """A network by whose name one could take it for a normalizer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))


def test_a_block_that_holds_normalizers_is_none_itself(caplog):
    with caplog.at_level(logging.INFO, logger="exemplar_norm"):
        model = convert_norm(NormalizedNet())
    assert type(model.body[1]) is ExemplarNorm2d and not caplog.records


@pytest.mark.parametrize(
    "make, options, found",
    [
        (lambda: [SwitchNorm2d(8), SwitchNorm2d(8)], {}, r"found 2 × SwitchNorm2d \(0, …\)$"),
        (lambda: [nn.BatchNorm2d(8)], {"skip": ("*",)}, r"found 1 × BatchNorm2d \(0\) that skip= names$"),
        (
            lambda: [nn.BatchNorm2d(8), nn.LayerNorm(8), SwitchNorm2d(8)],
            {"skip": ["0"]},
            r"found 1 × LayerNorm \(1\), 1 × SwitchNorm2d \(2\) and 1 × BatchNorm2d \(0\) that skip= names$",
        ),
        (lambda: [nn.Conv2d(3, 8, 1)], {"skip": ("*",)}, "found no normalization layer$"),
    ],
    ids=["family", "skipped", "all", "none"],
)
def test_nothing_to_convert_says_what_there_is(make, options, found):
    with pytest.raises(ValueError, match=found):
        convert_norm(nn.Sequential(*make()), "en", **options)
