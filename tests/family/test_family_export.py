"""torch.export and ONNX: the exported program computes what the layer does, for any batch size."""

import pytest
import torch
from torch.export import Dim, export

from tests.family.family_cases import FAMILY, WITH_BN, family_case

PASSES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def data(n=3, dtype=torch.float64):
    return torch.randn(n, 6, 4, 5, dtype=dtype)


@PASSES
@pytest.mark.parametrize(
    "strict", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["strict", "non-strict"]
)
@pytest.mark.parametrize("kind", WITH_BN)
def test_export(kind, strict, training):
    layer = family_case(kind).build(training=training)
    program = export(layer, (data(),), dynamic_shapes=({0: Dim("n", min=2)},), strict=strict)
    exported = program.module()
    for n in (3, 5, 8):
        x = data(n)
        got = exported(x)
        # float64, one formula in another order of operations.
        torch.testing.assert_close(got, layer(x), rtol=1e-10, atol=1e-10)
    if training:  # the exported step moves its averages as the layer does
        own = dict(exported.named_buffers())
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(own[name], layer.state_dict()[name], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inside the exporter
@pytest.mark.parametrize("kind", FAMILY)
def test_onnx_runs_in_onnxruntime(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = family_case(kind).build(torch.float32, training=False)
    path = tmp_path / "layer.onnx"
    program = torch.onnx.export(
        layer, (data(2, torch.float32),), dynamo=True, dynamic_shapes=({0: Dim("n", min=2)},), verbose=False
    )
    program.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (feed,) = session.get_inputs()
    for n in (2, 5):
        x = data(n, torch.float32)
        (got,) = session.run(None, {feed.name: x.numpy()})
        with torch.no_grad():
            want = layer(x)
        # float32 rounding of values of about 10.
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-5, atol=1e-5)
