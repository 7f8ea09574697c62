"""Noisy labels and segmentation on one, two and three machines of loopback: fits, and their tests."""

import csv
import re

import numpy as np
import pytest
import torch
import yaml
from processes import finish_all, torchrun
from run_files import rows_of
from task_jobs import FITS, SCORES, run_of
from task_paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TRAINER = {"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
CONFIGS = {
    # No statistics over the batch, and no groups of a single channel, which blow rounding up.
    "noisy_labels": {
        "trainer": {**TRAINER, "limit_train_batches": 4, "precision": "64-true"},
        "model": {"network": "digits_resnet", "norm": "ln", "lr": 0.02, "schedule": "constant"},
        "data": {"image_size": 16, "noise": {"kind": "symmetric", "rate": 0.4}},
    },
    "segmentation": {
        "dataset": "digit_scenes",
        "trainer": {**TRAINER, "limit_val_batches": 1.0},
        "model": {"network": "digits_unet", "norm": "en", "sync": True, "aux_weight": 0}
        | {"optimizer": "adamw", "lr": 0.003, "schedule": "constant"},
        "data": {"scenes": 240},
    },
}
WORLDS = (3, 2, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    for task, config in CONFIGS.items():
        common = {"runs_dir": str(folder / "runs"), "wandb": {"mode": "disabled"}}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump({**config, **common}))
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    """What task_jobs.py printed, by the number of machines; one process tests what the others trained."""
    texts = {}
    for world in WORLDS:
        others = [other for other in WORLDS if other > 1] if world == 1 else []
        jobs = [REPOSITORY / "tests/tasks/launches/task_jobs.py", folder, *others]
        agents = torchrun(world, jobs, folder / f"world-{world}")
        finish_all(agents)
        texts[world] = "".join(agent.text for agent in agents)
    return texts


def scores_of(text):
    """The tested metrics of each run in turn, as its table shows them."""
    tables = re.split(r"^(?:noisy_labels|segmentation) (?:fit|test) *$", text, flags=re.MULTILINE)[1:]
    return [re.findall(r"(test/\w+)\W+([\d.]+)", table) for table in tables]


def values_of(run, column):
    return [float(row[column]) for row in rows_of(run / "metrics.csv") if row[column]]


def test_each_world_says_its_global_batch_once(printed):
    for world, text in printed.items():
        for total, runs in ((24, 2), (6, 1)):
            told = f"global batch {total} = {total // world} images × {world} process"
            assert text.count(told) == runs, text


@pytest.mark.parametrize("world", [2, 3])
def test_what_several_machines_have_tested_one_process_finds_again(folder, printed, world):
    there, here = scores_of(printed[world]), scores_of(printed[1])
    assert len(there) == len(FITS) and len(here) == 3 * len(FITS)
    later = here[(WORLDS.index(world) + 1) * len(FITS) :][: len(FITS)]
    assert there == later and all(there), printed[world]
    own = (folder / f"scenes-{world}.csv").read_text()
    assert own == (run_of(folder, "scenes", world) / SCORES).read_text()
    found = [float(row["iou"]) for row in csv.DictReader(own.splitlines())]
    assert sum(iou > 0 for iou in found) > 3  # more than the background


@pytest.mark.parametrize("world", [2, 3])
def test_early_learning_is_the_same_on_any_number_of_machines(folder, printed, world):
    one, other = (run_of(folder, "elr", size) for size in (1, world))
    assert (one / "noisy_labels.csv").read_bytes() == (other / "noisy_labels.csv").read_bytes()
    left, right = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, other))
    # The memory is kept in float32, whose last digit may fall either way; the rest is float64.
    for name, tensor in left["state_dict"].items():
        torch.testing.assert_close(right["state_dict"][name], tensor, rtol=1e-6, atol=1e-7)
    memories = [state["noisy_labels"]["learner"]["_extra_state"] for state in (left, right)]
    torch.testing.assert_close(memories[1], memories[0], rtol=1e-6, atol=1e-7)
    for column in ("val/loss", "val/top1", "train/memorised", "train/noise_auroc_suspects"):
        found = [values_of(run, column) for run in (one, other)]
        assert len(found[0]) == 3
        np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
