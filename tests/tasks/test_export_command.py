"""From a fit over the command line of export to a classifier elsewhere."""

import shutil

import numpy as np
import torch
from image_fits import fit_and_forget
from image_trees import NAMES, digit_picture
from PIL import Image

from tasks.classification import load_classifier


def test_what_was_fitted_is_what_was_exported(cli, tmp_path):
    run = fit_and_forget(tmp_path)
    image = Image.fromarray(digit_picture(np.random.default_rng(5), 1))
    fitted = load_classifier(run)
    with torch.no_grad():
        wanted = fitted(fitted.preprocess(image)[None])
    outcome = cli("export", "--ckpt_path", run, "--format", "safetensors")
    assert outcome.code == 0 and outcome.out == f"exported to {run / 'export-best'}\n", outcome.err

    moved = shutil.move(run / "export-best", tmp_path / "elsewhere")
    shutil.rmtree(run)
    assert sorted(path.name for path in moved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    exported = load_classifier(moved)
    assert exported.class_names == list(NAMES[:3])
    with torch.no_grad():
        assert torch.equal(exported(exported.preprocess(image)[None]), wanted)

    again = cli("export", "--ckpt_path", run, "--format", "safetensors")
    assert again.code == 2 and "which does not exist" in again.error
