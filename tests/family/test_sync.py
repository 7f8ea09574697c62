"""bn statistics over two gloo ranks against one process that sees the whole batch."""

import pytest
import torch
from torch import nn

from exemplar_norm import NORMS, convert_norm, sync_norm
from exemplar_norm.batch import BatchNorm
from tests import reference
from tests.family import sync_jobs
from tests.family.family_cases import FAMILY, WITH_BN, family_case
from tests.family.family_oracles import pooled_values, union_statistics
from tests.family.rank_jobs import run_on_ranks
from tests.layers.layer_cases import assert_same_gradients, snapshot

# float64 sums in another order.
TOL = 1e-10


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(sync_jobs.jobs, tmp_path_factory.mktemp("ranks"))


def full_batch(check, state, step):
    """Oracle of one step: outputs and gradients of each rank, the statistics those of the union."""
    case = family_case(check.kind, channels=sync_jobs.CHANNELS)
    leaves = [x.clone().requires_grad_() for x, _ in step]
    mean, var = union_statistics(leaves)
    own = state | {"running_mean": mean, "running_var": var}
    # The oracle in evaluation mode takes "bn" from what it is given: here the union's statistics.
    outputs = [case.oracle(leaf, own, training=False) if len(leaf) else leaf * 1 for leaf in leaves]
    loss = sum((y * upstream).sum() for y, (_, upstream) in zip(outputs, step, strict=True))
    names = [name for name, value in state.items() if value.requires_grad]
    grads = torch.autograd.grad(loss, [*leaves, *(state[n] for n in names)], materialize_grads=True)
    return outputs, grads[: len(leaves)], dict(zip(names, grads[len(leaves) :], strict=True))


@pytest.mark.parametrize("check", sync_jobs.CHECKS, ids=str)
def test_ranks_equal_the_full_batch(ranks, check):
    records = ranks(str(check))
    layer = check.layer(sync=False)
    state = snapshot(layer)
    momentum = sync_jobs.MOMENTA[check.momentum]
    buffers = {name: state[name] for name in ("running_mean", "running_var", "num_batches_tracked")}
    for number, step in enumerate(check.steps()):
        own = [record[number] for record in records]
        outputs, by_x, by_parameter = full_batch(check, state, step)
        for rank, record in enumerate(own):
            torch.testing.assert_close(record["y"], outputs[rank].detach(), rtol=TOL, atol=TOL)
            assert_same_gradients({"x": record["grad.x"]}, {"x": by_x[rank]}, TOL) if len(
                by_x[rank]
            ) else None
        summed = {name: sum(r[f"grad.{name}"] for r in own) for name in by_parameter}
        assert_same_gradients(summed, by_parameter, TOL)
        values = pooled_values([x for x, _ in step])
        if values.numel():  # an empty batch moves nothing
            buffers = reference.update_running(values, buffers, momentum)
        for record in own:
            for name, want in buffers.items():
                torch.testing.assert_close(record[f"buffer.{name}"], want, rtol=TOL, atol=TOL)


def test_the_checks_tell_ranks_apart():
    """The batches are such that statistics of one rank alone would fail the comparison above."""
    for check in sync_jobs.CHECKS:
        for (x, _), (z, _) in check.steps():
            if len(z):
                assert (x.mean() - z.mean()).abs() > 0.01


@pytest.mark.parametrize("name", sync_jobs.NETWORKS)
def test_network_equals_batch_norm_on_the_full_batch(ranks, name):
    """PyTorch's own BatchNorm in one process is the oracle of sync_norm on a network, converted or not."""
    records, batches = ranks(f"network-{name}"), sync_jobs.network_batches()
    want = sync_jobs.train_and_evaluate(sync_jobs.network(), torch.cat(batches))
    for key in ("y", "grad.x", "evaluation"):
        got = torch.cat([record[key] for record in records])
        torch.testing.assert_close(got, want[key], rtol=TOL, atol=TOL)
    convolutions = [key for key in want if key.startswith(("grad.conv", "grad.fc"))]
    assert len(convolutions) == 4
    for key in convolutions + (["grad.bn1.weight", "grad.bn1.bias"] if name == "native" else []):
        got = sum(record[key] for record in records)
        assert_same_gradients({key: got}, {key: want[key]}, TOL)
    for record in records:
        for key in (k for k in want if k.startswith("buffer.")):
            torch.testing.assert_close(record[key], want[key], rtol=TOL, atol=TOL)


def test_process_group_of_one_rank_stays_local(ranks):
    layer = nn.BatchNorm2d(sync_jobs.CHANNELS, dtype=torch.float64)
    step = sync_jobs.Check("bn", "both-differ").steps()[0]
    for got, (x, _) in zip(ranks("subgroup"), step, strict=True):
        torch.testing.assert_close(got, layer(x), rtol=TOL, atol=TOL)


def test_evaluation_exchanges_nothing(ranks):
    x = sync_jobs.Check("bn", "equal").steps()[0][0][0]
    got = ranks("evaluation")[0]
    assert list(got) == list(FAMILY)
    for kind in FAMILY:  # fresh layers: what is drawn at random does not reach their output yet
        layer = NORMS[kind](sync_jobs.CHANNELS, dtype=torch.float64).eval()
        torch.testing.assert_close(got[kind], layer(x).detach(), rtol=TOL, atol=TOL)


def test_synchronised_layer_compiles_to_one_graph(ranks):
    check = sync_jobs.Check("en", "both-differ")
    outputs, by_x, _ = full_batch(check, snapshot(check.layer(sync=False)), check.steps()[0])
    for rank, record in enumerate(ranks("compiled")):
        torch.testing.assert_close(record["y"], outputs[rank].detach(), rtol=TOL, atol=TOL)
        assert_same_gradients({"x": record["grad.x"]}, {"x": by_x[rank]}, TOL)


@pytest.mark.parametrize("kind", WITH_BN)
def test_without_a_process_group_sync_changes_nothing(kind):
    check = sync_jobs.Check(kind, "equal")
    x = check.steps()[0][0][0]
    synced, plain = check.layer(sync=True), check.layer(sync=False)
    assert synced.sync and not plain.sync
    assert torch.equal(synced(x), plain(x))
    assert torch.equal(synced.running_var, plain.running_var)


def test_sync_norm_keeps_names_and_function():
    net, x = sync_jobs.network(), torch.cat(sync_jobs.network_batches())
    names, want = list(net.state_dict()), sync_jobs.train_and_evaluate(sync_jobs.network(), x)
    synced = sync_norm(net)
    assert synced is net and list(net.state_dict()) == names
    assert [type(m) for m in net.modules() if hasattr(m, "running_mean")] == [BatchNorm] * 3
    assert [m.momentum for m in net.modules() if hasattr(m, "momentum")] == [0.1, None, 0.1]
    got = sync_jobs.train_and_evaluate(net, x)
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=TOL, atol=TOL)


def test_sync_norm_switches_layers_of_the_family():
    net = convert_norm(sync_jobs.network(), "sn")
    layers = [m for m in net.modules() if hasattr(m, "sync")]
    assert len(layers) == 3 and not any(layer.sync for layer in layers)
    sync_norm(net)
    assert [m for m in net.modules() if hasattr(m, "sync")] == layers and all(m.sync for m in layers)
    assert "sync=True" in repr(layers[0])


def test_sync_norm_returns_the_replacement_of_a_root_layer():
    assert type(sync_norm(nn.BatchNorm2d(4))) is BatchNorm


@pytest.mark.parametrize(
    "model",
    [nn.Linear(3, 3), nn.GroupNorm(2, 4), NORMS["en"](4, normalizers=("in", "ln"))],
    ids=["no-norm", "groupnorm", "en-without-bn"],
)
def test_sync_norm_without_batch_statistics_is_an_error(model):
    with pytest.raises(ValueError, match="sync_norm: expected layers that take statistics over the batch"):
        sync_norm(model)


def test_sync_norm_refuses_hooks_and_missing_averages_and_changes_nothing():
    for spoil in ("hook", "no-averages"):
        net = sync_jobs.network()
        if spoil == "hook":
            net.bn2.register_forward_hook(lambda *_: None)
        else:
            net.bn2 = nn.BatchNorm2d(4, track_running_stats=False)
        before = list(net.modules())
        with pytest.raises(ValueError, match="bn2"):
            sync_norm(net)
        assert list(net.modules()) == before
