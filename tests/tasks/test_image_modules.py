"""Data modules of image files and CIFAR: views, augmentation, normalisation, pictures, images to predict."""

import pickle
import shutil

import pytest
import torch
from image_trees import WNIDS, break_file, imagenet_tree
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from tasks.classification.folders import ImageFolderDataModule
from tasks.classification.imagenet import ImageNetDataModule
from tasks.classification.transforms import augmentations
from tasks.data import SeededDataset
from tasks.images import read_image
from tasks.normalize import normalize
from tasks.samplers import EpochSampler, seed_for

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"train_size": 48, "eval_resize": 64, "eval_size": 56, "num_workers": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return imagenet_tree(tmp_path_factory.mktemp("trees") / "imagenet", classes=3, train=4, val=2)


def imagenet(root, **options):
    data = ImageNetDataModule(str(root), **{**SMALL, **options})
    data.setup("fit")
    return data


def test_the_tree_is_the_same_every_time(tree, tmp_path):
    again = imagenet_tree(tmp_path / "again", classes=3, train=4, val=2)
    files = sorted(path.relative_to(tree) for path in tree.rglob("*.JPEG"))
    assert files == sorted(path.relative_to(again) for path in again.rglob("*.JPEG")) and len(files) == 18
    assert all((tree / file).read_bytes() == (again / file).read_bytes() for file in files)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_images_are_torchvisions_random_crops_in_bytes(tree, interpolation):
    data = imagenet(tree, interpolation=interpolation, seed=5)
    mode = v2.InterpolationMode(interpolation)
    reference = v2.Compose(
        [v2.RandomResizedCrop(48, interpolation=mode, antialias=True), v2.RandomHorizontalFlip()]
    )
    dataset = SeededDataset(data.examples("train"), seed=5)
    for index in (0, 7):
        image, label, _ = dataset[3, index]
        torch.manual_seed(seed_for(5, 3, index))
        expected = reference(read_image(data.files("train").path(index)))
        assert image.dtype == torch.uint8 and label == data.labels("train")[index]
        assert torch.equal(image, expected)


def test_evaluation_images_are_torchvisions_in_bytes(tree):
    data = imagenet(tree)
    reference = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])
    image, label = data.examples("val")[3]
    assert torch.equal(image, reference(read_image(data.files("val").path(3)))) and label == 1
    assert torch.equal(data.picture("val", 3), image)
    # A picture of a training image is its evaluation view too.
    assert torch.equal(data.picture("train", 2), reference(read_image(data.files("train").path(2))))


def test_batches_are_normalised_after_the_transfer(tree):
    data = imagenet(tree, batch_size=4)
    batch = next(iter(data.val_dataloader()))
    assert batch[0].dtype == torch.uint8 and batch[0].shape == (4, 3, 56, 56)
    images, labels, indices = data.on_after_batch_transfer(batch, 0)
    exact = batch[0].double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    assert images.dtype == torch.float32
    # Two float32 roundings of values below 3.
    torch.testing.assert_close(images.double(), (exact - mean) / std, atol=1e-6, rtol=0)
    assert labels.tolist() == [0, 0, 1, 1] and indices.tolist() == [0, 1, 2, 3]


def test_normalisation_keeps_the_order_in_memory():
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    result = normalize(nhwc, MEAN, STD)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, normalize(images, MEAN, STD))


def test_the_default_view_is_the_standard_one(tree):
    data = ImageNetDataModule(str(tree), num_workers=0)
    assert data.examples("val")[0][0].shape == data.examples("train")[0][0].shape == (3, 224, 224)
    assert data.examples("train").transform.transforms[0] is read_image
    assert len(data.examples("train").transform.transforms) == 2  # read, crop and flip: nothing else


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("autoaugment", v2.AutoAugment),
        ("randaugment", v2.RandAugment),
        ("trivialaugment", v2.TrivialAugmentWide),
        ("augmix", v2.AugMix),
    ],
)
def test_augmentation_policies_are_torchvisions(tree, name, kind):
    data = imagenet(tree, auto_augment=name, color_jitter=0.4, erasing=0.25)
    steps = data.examples("train").transform.transforms
    assert [type(step) for step in steps[2:]] == [kind, v2.ColorJitter, v2.RandomErasing]
    assert steps[3].brightness == steps[3].saturation == (0.6, 1.4) and steps[3].hue is None
    dataset = SeededDataset(data.examples("train"), 0)
    images = [dataset[epoch, 1][0] for epoch in range(6)]
    assert all(image.dtype == torch.uint8 and image.shape == (3, 48, 48) for image in images)
    plain = SeededDataset(imagenet(tree).examples("train"), 0)
    assert any(not torch.equal(image, plain[epoch, 1][0]) for epoch, image in enumerate(images))
    assert all(torch.equal(image, dataset[epoch, 1][0]) for epoch, image in enumerate(images))


def test_the_hue_turns_alone(tree):
    (jitter,) = imagenet(tree, hue_jitter=0.2).examples("train").transform.transforms[2:]
    assert jitter.hue == (-0.2, 0.2) and jitter.brightness is jitter.contrast is jitter.saturation is None
    with pytest.raises(ValueError, match=r"data\.hue_jitter: expected a number in \[0, 0\.5\], got 0\.6"):
        imagenet(tree, hue_jitter=0.6)


def test_erased_is_the_mean_colour_and_nothing_else_changes():
    (erase,) = augmentations(None, 0.0, 1.0, MEAN)
    image = torch.full((3, 40, 40), 7, dtype=torch.uint8)
    torch.manual_seed(0)
    erased = erase(image)
    changed = (erased != image).any(0)
    assert 0.02 * 1600 * 0.9 <= changed.sum() <= 0.33 * 1600 * 1.1  # the area of RandomErasing, whole pixels
    assert (erased[:, changed] == torch.tensor([124, 116, 104])[:, None]).all()  # 255 · mean, rounded
    normalised = normalize(erased[None], MEAN, STD)[0]
    # Half a level of 255 over the smallest deviation.
    assert normalised[:, changed].abs().max() <= 0.5 / 255 / 0.224 + 1e-6


def test_repeats_reach_the_sampler(tree):
    keys = list(imagenet(tree, repeats=3).train_dataloader().sampler)
    assert len(keys) == 12 and [copy for *_, copy in keys] == [0, 1, 2] * 4
    assert len({index for _, index, _ in keys}) == 4


def test_batches_do_not_depend_on_the_workers(tree):
    options = {"auto_augment": "trivialaugment", "erasing": 0.5, "repeats": 2}
    dataset = SeededDataset(imagenet(tree, **options).examples("train"), 0)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(12, seed=0, repeats=2)
        sampler.set_epoch(1)
        loader = DataLoader(dataset=dataset, batch_size=4, sampler=sampler, num_workers=workers)
        batches.append([image for images, *_ in loader for image in images])
    assert len(batches[0]) == 12 and all(map(torch.equal, *batches))
    assert not torch.equal(batches[0][0], batches[0][1])  # two augmentations of one image


def test_a_module_goes_to_spawned_processes(tree):
    data = pickle.loads(pickle.dumps(imagenet(tree)))
    assert torch.equal(data.examples("val")[0][0], imagenet(tree).examples("val")[0][0])


def test_unusual_files_are_images_like_any_other(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "imagenet")
    paths = sorted((root / "train" / WNIDS[0]).iterdir())
    plain = read_image(paths[0])
    for kind in ("CMYK", "L", "RGBA", "16-bit", "rotated"):
        path = paths[0].with_name(f"{kind}.JPEG")
        shutil.copy(paths[0], path)
        break_file(path, kind)
        image = read_image(path)
        assert image.dtype == torch.uint8 and image.shape == plain.shape
        grey = kind in ("L", "16-bit")
        expected = v2.functional.rgb_to_grayscale(plain, 3) if grey else plain
        # Two rounds of JPEG at quality 90, and conversions of colours, on noisy pictures.
        assert (image.float() - expected.float()).abs().mean() < 4, kind
    assert len(imagenet(root).labels("train")) == 12 + 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"train_size": 0}, "data.train_size: expected a positive number, got 0"),
        ({"eval_size": 65}, "data.eval_size: expected a number from 1 to eval_resize (64), got 65"),
        ({"erasing": 1.5}, "data.erasing: expected a probability, got 1.5"),
        ({"color_jitter": -1}, "data.color_jitter: expected a number ≥ 0, got -1"),
        ({"repeats": 0}, "data.repeats: expected a positive number, got 0"),
        ({"max_unreadable": 1}, "data.max_unreadable: expected a number in [0, 1), got 1"),
        ({"prefetch_factor": 0}, "data.prefetch_factor: expected a positive number, got 0"),
        ({"batch_size": 0}, "data.batch_size: expected a positive number, got 0"),
    ],
)
def test_options_out_of_range_are_refused(tree, options, told):
    with pytest.raises(ValueError) as caught:
        ImageNetDataModule(str(tree), **{**SMALL, **options})
    assert str(caught.value) == told


def test_the_whole_path_through_the_trainer(tree):
    """Normalised images reach the model, in the precision of the run."""
    import pytorch_lightning as pl

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.seen, self.scale = [], torch.nn.Parameter(torch.ones(()))

        def test_step(self, batch, batch_idx):
            self.seen.append(batch[0] * self.scale)

    data = ImageFolderDataModule(str(tree), batch_size=4, **SMALL)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    seen = {}
    for precision in ("32-true", "64-true"):
        model = Model()
        trainer = pl.Trainer(precision=precision, use_distributed_sampler=False, barebones=False, **quiet)
        trainer.test(model, datamodule=data, verbose=False)
        seen[precision] = torch.cat(model.seen)
    assert (seen["32-true"].dtype, seen["64-true"].dtype) == (torch.float32, torch.float64)
    expected = normalize(torch.stack([data.picture("test", index) for index in range(6)]), MEAN, STD)
    assert torch.equal(seen["32-true"], expected)
    assert torch.equal(seen["64-true"].float(), expected)
