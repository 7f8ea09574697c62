"""convert_norm on whole models: what is found, left alone, shared, skipped and refused."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torchvision.ops import FrozenBatchNorm2d

from exemplar_norm import NORMS, ExemplarNorm2d, convert_norm
from exemplar_norm.exemplar import ExemplarNorm


class LayerNorm2d(nn.LayerNorm):
    """As torchvision and timm have it: a subclass that computes something else."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm2dSubclass(nn.BatchNorm2d):
    pass


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        nn.GroupNorm(1, 8),
    )


OTHERS = {
    "layernorm": nn.LayerNorm(8),
    "layernorm2d": LayerNorm2d(8),
    "rmsnorm": nn.RMSNorm(8),
    "frozen": FrozenBatchNorm2d(8),
    "batchnorm-subclass": BatchNorm2dSubclass(8),
    "local-response": nn.LocalResponseNorm(2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_alone_and_listed_in_one_line(name, caplog):
    other = OTHERS[name]
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(other, nn.Identity()), type(other)(8))
    with caplog.at_level(logging.INFO, logger="exemplar_norm"):
        convert_norm(model)
    assert type(model[0]) is ExemplarNorm2d and model[1][0] is other
    (record,) = caplog.records
    assert f"2 × {type(other).__name__} (1.0" in record.getMessage() and "\n" not in record.getMessage()


def test_nothing_is_logged_where_nothing_is_left_alone(caplog):
    with caplog.at_level(logging.DEBUG, logger="exemplar_norm"):
        convert_norm(network())
    assert not caplog.records


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_with_nothing_else_is_an_error_that_lists_them(name):
    with pytest.raises(ValueError, match=f"found 1 × {type(OTHERS[name]).__name__}"):
        convert_norm(nn.Sequential(nn.Conv2d(3, 8, 1), OTHERS[name]))


def test_a_network_without_norms_is_an_error():
    with pytest.raises(ValueError, match="no normalization layer"):
        convert_norm(nn.Linear(3, 3))


def test_timm_transformer_is_refused():
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="LayerNorm"):
        convert_norm(timm.create_model("convnext_atto", pretrained=False))


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"bn, in, ln, gn, sn, ssn, cbn, en.*'batch'"):
        convert_norm(network(), "batch")
    with pytest.raises(ValueError, match=r"reduction.*redaction"):
        convert_norm(network(), "en", redaction=3)


@pytest.mark.parametrize("norm", NORMS)
def test_converting_twice_changes_nothing(norm):
    model = convert_norm(network(), norm, preserve=False)
    before = list(model.modules())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert convert_norm(model, norm) is model
    after = list(model.modules())
    assert len(after) == len(before) and all(a is b for a, b in zip(after, before, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_converting_twice_with_an_activation_inside():
    timm = pytest.importorskip("timm")
    model = convert_norm(nn.Sequential(timm.layers.BatchNormAct2d(8)))
    before = list(model.modules())
    assert [type(m) for m in model[0]] == [ExemplarNorm2d, nn.ReLU]
    convert_norm(model)
    assert list(model.modules()) == before


def test_shared_modules_stay_shared():
    norm = nn.BatchNorm2d(3)
    block = nn.Sequential(norm, nn.ReLU())
    model = nn.ModuleDict({"a": norm, "b": block, "c": block, "d": nn.ModuleList([norm])})
    convert_norm(model)
    assert type(model["a"]) is ExemplarNorm2d
    assert model["a"] is model["b"][0] is model["c"][0] is model["d"][0]
    assert model["b"] is model["c"] is block


def test_root_layer_is_returned():
    assert type(convert_norm(nn.BatchNorm2d(8))) is ExemplarNorm2d
    already = ExemplarNorm2d(8)
    assert convert_norm(already) is already
    model = network()
    assert convert_norm(model) is model


@pytest.mark.parametrize(
    "skip, kept",
    [("1", ["1"]), (["2*"], ["2.1"]), (["*.1", "3"], ["2.1", "3"]), (["2"], ["2.1"]), ((), [])],
    ids=["name", "pattern", "two-patterns", "parent", "none"],
)
def test_skip(skip, kept):
    model = convert_norm(network(), skip=skip)
    norms = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, (ExemplarNorm, nn.BatchNorm2d, nn.GroupNorm))
    }
    assert [name for name, m in norms.items() if not isinstance(m, ExemplarNorm)] == kept
    assert len(norms) == 3


def test_skip_of_one_name_spares_a_shared_module():
    norm = nn.BatchNorm2d(3)
    model = nn.ModuleDict({"a": norm, "b": norm, "c": nn.BatchNorm2d(3)})
    convert_norm(model, skip="b")
    assert model["a"] is model["b"] is norm and type(model["c"]) is ExemplarNorm2d


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "forward-pre": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "backward-pre": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "state-dict": lambda m: m.register_state_dict_post_hook(lambda *_: None),
    "load-state-dict": lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
    "parametrization": lambda m: register_parametrization(m, "weight", nn.Identity()),
    "parameter-hook": lambda m: m.weight.register_hook(lambda grad: grad),
    "post-accumulate": lambda m: m.weight.register_post_accumulate_grad_hook(lambda p: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_and_parametrizations_are_an_error_that_names_the_layer(kind):
    model = network()
    HOOKS[kind](model[2][1])
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"2\.1.*BatchNorm2d"):
        convert_norm(model)
    assert list(model.modules()) == before
    convert_norm(model, skip="2.1")
    assert type(model[1]) is ExemplarNorm2d


def test_a_function_that_cannot_be_kept_says_what_to_pass_and_changes_nothing():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(4, 8))
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"1 \(GroupNorm, 'gn'\).*normalizers=\('in', 'ln', 'bn', 'gn'\)"):
        convert_norm(model)
    with pytest.raises(ValueError, match="groups=4"):
        convert_norm(model, normalizers=("bn", "gn"), groups=2)
    with pytest.raises(ValueError, match="'bn' is among the normalizers"):
        convert_norm(model, normalizers=("in", "gn"))
    with pytest.raises(ValueError, match="track_running_stats=False"):
        convert_norm(nn.InstanceNorm2d(8, track_running_stats=True))
    assert list(model.modules()) == before
    convert_norm(model, preserve=False)
    assert [type(m) for m in model] == [ExemplarNorm2d, ExemplarNorm]


def test_timm_classes_keep_activation_and_dropout():
    timm = pytest.importorskip("timm")
    source = timm.layers.BatchNormAct2d(8, act_layer=nn.SiLU, drop_layer=nn.Dropout).double()
    model = convert_norm(nn.Sequential(source).train())
    x = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    torch.manual_seed(1)
    want = source(x)
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)  # float64, another order
    assert [type(m) for m in model[0]] == [ExemplarNorm2d, nn.Dropout, nn.SiLU]
    no_activation = convert_norm(nn.Sequential(timm.layers.BatchNormAct2d(8, apply_act=False)))
    assert type(no_activation[0]) is ExemplarNorm2d
