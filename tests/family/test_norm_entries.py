"""The entries of NORMS: the arguments they refuse and take, and InstanceNorm of one position."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, convert_norm
from tests.layers.layer_cases import randomise


def groups_of(norm):
    """The option without which "gn" cannot be built for 8 channels."""
    return {"groups": 4} if norm == "gn" else {}


REFUSED = [
    {"dims": [2]}, {"dims": "2"}, {"dims": 4}, {"num_features": -1}, {"num_features": 0},
    {"num_features": 2.5}, {"num_features": "8"}, {"eps": -1}, {"eps": "a"}, {"eps": None},
    {"eps": float("nan")},
]  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_entries_refuse_arguments_in_one_line(norm, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected .*got {re.escape(repr(arguments[name]))}"):
        NORMS[norm](**{"num_features": 8, **groups_of(norm), **arguments})


@pytest.mark.parametrize("norm", [name for name, entry in NORMS.items() if "momentum" in entry.options])
def test_entries_refuse_a_momentum_that_is_none(norm):
    for momentum in (7, -0.1, "a", float("nan")):
        with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\]"):
            NORMS[norm](8, momentum=momentum)
    assert NORMS[norm](8, momentum=None).momentum is None


@pytest.mark.parametrize("norm", NORMS)
def test_whole_numbers_of_numpy_are_whole_numbers(norm):
    layer = NORMS[norm](np.int64(8), **({"groups": np.int32(4)} if norm == "gn" else {}))
    assert layer(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)
    assert repr(layer) == repr(NORMS[norm](8, **groups_of(norm)))


def test_instance_norm_of_one_position_is_refused_whatever_the_batch():
    source = randomise(nn.BatchNorm1d(8))
    layer = convert_norm(nn.Sequential(source), "in")[0]
    assert isinstance(layer, nn.InstanceNorm1d) and convert_norm(layer, "in") is layer
    for batch in (8, 4):  # (8, 8) would be taken for a single sample of 8 channels and 8 positions
        with pytest.raises(
            ValueError, match=rf"expected \(N, C, L\), got shape \({batch}, 8\); a single pos"
        ):
            layer(torch.randn(batch, 8))
    plain = nn.InstanceNorm1d(8, affine=True)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 8, 5)
    assert torch.equal(layer(x), plain(x)) and convert_norm(plain, "in") is plain
    again = convert_norm(layer, "en")
    # float32: the mixture rounds γ · λ and its sums in another order
    torch.testing.assert_close(again(x), plain(x), rtol=1e-5, atol=1e-5)
