"""Every configuration of segmentation is built on a small tree of its data set; some values are checked."""

import pytest
from seg_trees import ade20k_tree, cityscapes_tree
from task_paths import REPOSITORY

CONF = REPOSITORY / "conf/segmentation"
EVERY = sorted(CONF.glob("*.yaml"))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    return {"cityscapes": cityscapes_tree(folder / "c"), "ade20k": ade20k_tree(folder / "a")}


@pytest.fixture
def built(seg_parser, trees):
    """built(path) → what the command line makes of a file, with a small encoder that starts at random."""

    def build(path, *options):
        if path.stem != "digits":
            root = trees[path.stem.partition("_")[0]]
            options = ["--data.root", root, "--model.encoder_weights", "null", *options]
            options += ["--model.encoder", "resnet18"]
        return seg_parser("--config", path, *options)

    return build


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_configuration_is_built(built, path):
    cli = built(path)
    assert cli.run_name == path.stem
    norm = path.stem.split("2pergpu_")[-1].removesuffix("_sync") if "2pergpu" in path.stem else "en"
    model = cli.model.hparams
    assert model["norm"] == norm and model["sync"] == path.stem.endswith("_sync")
    assert model["network"] == (
        "digits_unet"
        if path.stem == "digits"
        else "deeplabv3"
        if "2pergpu" in path.stem
        else path.stem.split("_")[1]
    )
    if path.stem != "digits":
        assert cli.datamodule.batch_size == 2 and cli.config.fit.model.encoder == "resnet18"
        every = cli.trainer.check_val_every_n_epoch
        assert cli.trainer.max_epochs % every == 0, "the last epoch is validated"


def test_the_recipes_are_those_of_their_sources(built):
    def of(name):
        cli = built(CONF / f"{name}.yaml")
        return cli.model.hparams, cli.model.inference, cli.trainer.max_epochs

    model, inference, epochs = of("cityscapes_deeplabv3_r50_80k")
    assert (model["lr"], model["lr_batch"], model["weight_decay"]) == (0.01, 8, 5e-4)
    assert (model["schedule"], model["poly_power"], model["min_lr"]) == ("poly", 0.9, 1e-4)
    assert model["aux_weight"] == 0.4 and inference.mode == "whole"
    # 2,975 images on 4 GPUs of 2 images.
    assert abs(epochs * (2975 // 4 // 2) - 80_000) < 371
    model, inference, epochs = of("cityscapes_psp_r50_769_80k")
    assert (inference.mode, inference.crop_size, inference.stride) == ("slide", (769, 769), (513, 513))
    model, inference, epochs = of("ade20k_deeplabv3plus_r50_160k")
    assert (model["lr"], model["lr_batch"], inference.frame) == (0.01, 16, (2048, 512))
    # 20,210 images on 8 GPUs of 2 images; one epoch short, so that validations fit in.
    assert abs(epochs * (20210 // 8 // 2) - 160_000) < 1263
    model, _, epochs = of("ade20k_2pergpu_sn")
    assert (model["lr"], model["lr_batch"], model["weight_decay"], model["min_lr"]) == (0.02, 16, 1e-4, 0.0)
    assert abs(epochs * (20210 // 8 // 2) - 100_000) < 1263
