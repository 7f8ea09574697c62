"""Samplers, seeded augmentation, the digits and predictions."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from task_paths import DIGITS
from torch.utils.data import DataLoader

from tasks.classification.digits import DigitsDataModule
from tasks.classification.module import ClassificationModule
from tasks.data import SeededDataset
from tasks.errors import UserError
from tasks.samplers import EpochSampler, EvaluationSampler, seed_for
from tasks.splits import stratified_split


@pytest.fixture(scope="module")
def digits():
    data = DigitsDataModule(image_size=16)
    data.setup("fit")
    return data


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 7, 12])
def test_evaluation_counts_every_index_once(size, world_size):
    shares = [list(EvaluationSampler(size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(pair for share in shares for pair in share) == [(0, index) for index in range(size)]
    assert [len(EvaluationSampler(size, rank=r, world_size=world_size)) for r in range(world_size)] == [
        len(share) for share in shares
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_shares_are_disjoint_equal_and_one_order(world_size):
    size, epoch = 13, 4
    whole = EpochSampler(size, seed=5)
    whole.set_epoch(epoch)
    order = list(whole)
    assert sorted(order) == [(epoch, index) for index in range(size)]
    shares = []
    for rank in range(world_size):
        sampler = EpochSampler(size, seed=5, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == size // world_size
    # Together, step by step, the ranks go through the order of a single process.
    together = [pair for step in zip(*shares, strict=True) for pair in step]
    assert together == order[: len(together)] and len(together) > size - world_size


def test_the_order_depends_on_epoch_and_seed():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4) and order(0, 3) != order(1, 3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeated_augmentation_takes_each_image_several_times(world_size):
    size, repeats = 20, 3
    plain = EpochSampler(size, seed=5)
    shares = [
        EpochSampler(size, seed=5, rank=rank, world_size=world_size, repeats=repeats)
        for rank in range(world_size)
    ]
    for sampler in (plain, *shares):
        sampler.set_epoch(4)
    together = [key for step in zip(*shares, strict=True) for key in step]
    assert len(together) == size // world_size * world_size
    # torchvision's RASampler: the order of the epoch, each index repeated, cut to the length of an epoch.
    order = [index for _, index in plain]
    expected = [(4, index, copy) for index in order for copy in range(repeats)]
    assert together == expected[: len(together)]


def test_repetitions_are_augmented_anew_and_the_first_as_without(digits):
    dataset = SeededDataset(digits.examples("train"), seed=3)
    once, first, second = dataset[2, 17], dataset[2, 17, 0], dataset[2, 17, 1]
    assert torch.equal(once[0], first[0]) and once[1:] == first[1:] == second[1:]
    assert not torch.equal(first[0], second[0])
    assert torch.equal(second[0], dataset[2, 17, 1][0])


def test_the_loader_prefetches_and_keeps_its_workers():
    data = DigitsDataModule(image_size=16, num_workers=2)
    data.setup("fit")
    loader = data.train_dataloader()
    assert (loader.prefetch_factor, loader.persistent_workers) == (4, True)
    data.num_workers = 0
    assert data.train_dataloader().prefetch_factor is None


def test_pictures_are_the_evaluation_view_in_bytes(digits):
    picture = digits.picture("test", 7)
    assert picture.dtype == torch.uint8 and picture.shape == (3, 16, 16)
    seen = SeededDataset(digits.examples("test"), digits.seed)[0, 7][0]
    # Bytes are rounded by up to half a level of 255; the normalisation divides by 1/4.
    torch.testing.assert_close((picture / 255 - 0.5) / 0.25, seen, atol=4 * 0.5 / 255 + 1e-5, rtol=0)
    # A training picture is not moved about: it is what evaluation would make of that digit.
    assert torch.equal(digits.picture("train", 3), digits.picture("train", 3))


def test_seeds_tell_their_parts_apart():
    keys = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    assert len({seed_for(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_for(*key) < 2**63 for key in keys)


def test_augmentation_is_a_function_of_seed_epoch_and_index(digits):
    dataset = SeededDataset(digits.examples("train"), seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    image, label, index = dataset[2, 17]
    assert torch.equal(torch.get_rng_state(), state), "the training process's generator is left alone"
    assert index == 17 and label == int(digits.labels("train")[17])
    _ = dataset[2, 3], torch.rand(5)
    assert torch.equal(dataset[2, 17][0], image)
    assert not torch.equal(dataset[3, 17][0], image)
    assert not torch.equal(SeededDataset(digits.examples("train"), seed=4)[2, 17][0], image)


def test_batches_do_not_depend_on_the_workers(digits):
    dataset = SeededDataset(digits.examples("train"), seed=0)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(60, seed=0)
        sampler.set_epoch(1)
        loader = DataLoader(dataset=dataset, batch_size=20, sampler=sampler, num_workers=workers)
        batches.append(list(loader))
    for one, two in zip(*batches, strict=True):
        for left, right in zip(one, two, strict=True):
            assert torch.equal(left, right)


def test_the_split_is_stratified_disjoint_and_whole(digits):
    rows = digits.rows
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1797))
    counts = {name: np.bincount(digits.digits.numpy()[index]) for name, index in rows.items()}
    for name, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        assert np.abs(counts[name] - share * sum(counts.values())).max() <= 1
    again = stratified_split(digits.digits.numpy(), {"train": 0.65, "val": 0.15, "test": 0.2})
    assert all(np.array_equal(again[name], rows[name]) for name in rows)


def test_images_have_their_own_contrast_and_colour(digits):
    images = torch.stack([digits.examples("test")[index][0] for index in range(64)])
    assert images.shape == (64, 3, 16, 16) and images.dtype == torch.float32
    assert images.std(dim=(2, 3)).std() > 0.1
    assert images.mean(dim=(2, 3)).std() > 0.1
    assert (images.mean(dim=(2, 3)).std(dim=1) > 0.01).any()


def test_evaluation_images_are_the_same_every_time(digits):
    dataset = SeededDataset(digits.examples("val"), seed=0)
    assert torch.equal(dataset[0, 5][0], dataset[0, 5][0])


def test_predictions_are_the_models_own(fit, cli, small, runs):
    assert fit("--trainer.max_epochs", "1").code == 0
    path = runs / "digits/checkpoints/best.ckpt"
    options = ("--config", DIGITS, "--config", small, "--trainer.limit_predict_batches", "null")
    outcome = cli("predict", *options, "--ckpt_path", path)
    assert outcome.code == 0, outcome.err
    target = runs / "digits/predictions.csv"
    assert f"359 predictions written to {target}" in outcome.out
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["sample", "predicted", "probability", "true"]

    stored = torch.load(path, weights_only=True)
    settings = {k: v for k, v in stored["hyper_parameters"].items() if not k.startswith("_")}
    model = ClassificationModule(**settings).eval()
    model.load_state_dict(stored["state_dict"])
    styles = yaml.safe_load(DIGITS.read_text())["data"]["styles"]
    data = DigitsDataModule(image_size=16, seed=0, styles=styles)
    data.setup("predict")
    dataset = SeededDataset(data.examples("predict"), seed=0)
    assert len(rows) == len(dataset)
    images, labels, _ = zip(*(dataset[0, index] for index in range(len(dataset))), strict=True)
    with torch.no_grad():
        probability, predicted = model(torch.stack(images)).softmax(1).max(1)
    assert [int(row["sample"]) for row in rows] == list(data.rows["test"])
    assert [int(row["true"]) for row in rows] == list(labels)
    # Two classes can be as good as equal after one epoch; batch sizes move the last digit.
    assert sum(int(row["predicted"]) != int(p) for row, p in zip(rows, predicted, strict=True)) <= 1
    got = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(got, probability, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_each_process_needs_an_image_to_evaluate(loader):
    data = DigitsDataModule(batch_size=4)
    data.setup("fit")
    data.examples = lambda split: [(torch.zeros(3, 2, 2), 0)] * 2
    strategy = SimpleNamespace(broadcast=lambda value: value)
    data.trainer = SimpleNamespace(world_size=3, global_rank=0, strategy=strategy)
    with pytest.raises(UserError, match="expected an image for each of 3 processes, got 2"):
        getattr(data, loader)()
    data.trainer.world_size = 2
    assert len(getattr(data, loader)()) == 1
