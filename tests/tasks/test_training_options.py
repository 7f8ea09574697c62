"""What a practitioner switches on: each through the command line, in a real fit, with what it must change."""

import pytest
import torch


def weights_of(runs, name="digits", which="last"):
    return torch.load(runs / name / f"checkpoints/{which}.ckpt", weights_only=True)


def test_the_learning_rate_follows_the_global_batch_and_the_log_says_so(fit, runs):
    options = ("--model.lr_batch", "256", "--trainer.accumulate_grad_batches", "2")
    outcome = fit(*options, "--model.schedule", "constant")
    assert outcome.code == 0, outcome.err
    told = "learning rate 0.0125 = 0.05 × 64/256: global batch 64 = 32 images × 1 processes × 2 accumulated"
    assert outcome.out.count(told) == 1
    groups = weights_of(runs)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [pytest.approx(0.0125)] * len(groups)


def test_accumulated_batches_equal_one_large_batch(fit, runs):
    # Without statistics over the batch, a sum of gradients over two half batches is that over the whole.
    common = ("--model.norm", "gn", "--trainer.max_epochs", "1", "--model.schedule", "constant")
    halves = ("--data.batch_size", "16", "--trainer.accumulate_grad_batches", "2")
    parts = fit(*common, *halves, "--name", "parts", "--trainer.limit_train_batches", "4")
    whole = fit(*common, "--name", "whole", "--trainer.limit_train_batches", "2")
    assert parts.code == whole.code == 0
    a, b = (weights_of(runs, name)["state_dict"] for name in ("parts", "whole"))
    # Float32 sums in another order, through two steps at a rate of 0.1.
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-5) for key in a)


def test_clipped_gradients_move_nothing(fit, runs):
    options = ("--model.weight_decay", "0", "--trainer.gradient_clip_val", "1.0e-9")
    assert fit(*options, "--trainer.max_epochs", "1", "--name", "short").code == 0
    assert fit(*options, "--name", "long").code == 0
    short, long = (weights_of(runs, name)["state_dict"] for name in ("short", "long"))
    for key, value in long.items():
        if "running" not in key and "tracked" not in key:
            # Six steps of length 1e-10 at most.
            torch.testing.assert_close(value, short[key], rtol=0, atol=1e-7)


def test_the_tested_weights_are_the_averaged_ones(fit, cli, small, runs, tmp_path):
    overlay = tmp_path / "ema.yaml"
    overlay.write_text(
        "trainer:\n  callbacks:\n"
        "    - class_path: pytorch_lightning.callbacks.EMAWeightAveraging\n      init_args: {decay: 0.9}\n"
    )
    averaged, plain = fit("--config", overlay, "--name", "ema"), fit("--name", "plain")
    assert averaged.code == plain.code == 0
    ema, last = weights_of(runs, "ema")["state_dict"], weights_of(runs, "plain")["state_dict"]
    assert ema.keys() == last.keys()
    assert not torch.equal(ema["network.fc.weight"], last["network.fc.weight"])
    resumed = fit("--config", overlay, "--name", "ema", "--resume", "auto", "--trainer.max_epochs", "3")
    assert resumed.code == 0, resumed.err


@pytest.mark.parametrize("norm", ["bn", "en"])
def test_bfloat16_channels_last_and_compilation(fit, runs, norm):
    options = ("--model.norm", norm, "--trainer.precision", "bf16-mixed", "--model.channels_last", "true")
    assert fit(*options, "--model.compile", "true", "--trainer.max_epochs", "1").code == 0
    state = weights_of(runs)["state_dict"]
    assert not any("_orig_mod" in key for key in state)
    assert state["network.conv1.0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(value.dtype == torch.float32 for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize(
    "callback",
    [
        "{class_path: pytorch_lightning.callbacks.DeviceStatsMonitor, init_args: {cpu_stats: true}}",
        "{class_path: pytorch_lightning.callbacks.LearningRateFinder, init_args: {num_training_steps: 3}}",
        "{class_path: pytorch_lightning.callbacks.ThroughputMonitor, "
        "init_args: {batch_size_fn: tasks.callbacks.batch_size, window_size: 2}}",
        "{class_path: pytorch_lightning.callbacks.ModelSummary, init_args: {max_depth: 2}}",
    ],
    ids=["DeviceStatsMonitor", "LearningRateFinder", "ThroughputMonitor", "ModelSummary"],
)
def test_lightnings_own_callbacks(fit, tmp_path, callback):
    overlay = tmp_path / "callback.yaml"
    overlay.write_text(f"trainer:\n  callbacks: [{callback}]\n")
    outcome = fit("--config", overlay)
    assert outcome.code == 0, outcome.err


def test_mixing_with_label_smoothing_trains(fit, runs):
    assert fit("--model.mixup", "0.2", "--model.cutmix", "1.0").code == 0
    assert all(value.isfinite().all() for value in weights_of(runs)["state_dict"].values())


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "cbn", "en"])
def test_blocks_start_as_the_identity(norm):
    from tasks.models import build_network, zero_last_gammas

    network = build_network("resnet50", 10, norm)
    zero_last_gammas(network)
    gammas = [block.bn3.weight for stage in (1, 2, 3, 4) for block in getattr(network, f"layer{stage}")]
    assert len(gammas) == 16 and not any(gamma.any() for gamma in gammas)
    block = network.layer1[1].eval()
    x = torch.randn(2, 256, 4, 4)
    assert torch.equal(block(x), x.relu()) or norm == "cbn"  # its last layer is not zero from γ alone


def test_auxiliary_heads_are_trained(fit, runs):
    outcome = fit("--model.network", "googlenet", "--data.image_size", "32", "--data.batch_size", "4")
    assert outcome.code == 0, outcome.err
    state = weights_of(runs)["state_dict"]
    assert any("aux1" in key for key in state)
