"""Predictions as pictures and as the files that the benchmarks take."""

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.segmentation.labels import CITYSCAPES, DIGITS, IGNORE, ade20k
from tasks.segmentation.overlays import legend, overlay, submission, write_prediction


def test_submissions_hold_the_numbers_of_the_data_set():
    mask = torch.tensor([[0, 13, 18, IGNORE]])
    assert np.asarray(submission(mask, CITYSCAPES)).tolist() == [[7, 26, 33, 0]]
    mask = torch.tensor([[0, 149, IGNORE]])
    assert np.asarray(submission(mask, ade20k())).tolist() == [[1, 150, 0]]
    assert submission(mask, ade20k()).mode == "L"


def test_overlays_blend_and_spare_what_is_ignored():
    image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    blended = overlay(image, torch.tensor([[0, IGNORE]]), CITYSCAPES, opacity=0.5)
    # Road is (128, 64, 128).
    assert blended[:, 0, 0].tolist() == [114, 82, 114]
    assert blended[:, 0, 1].tolist() == [100, 100, 100]


def test_files_have_the_size_of_the_image(tmp_path):
    image = torch.zeros(3, 7, 11, dtype=torch.uint8)
    mask = torch.arange(77).view(7, 11) % 19
    write_prediction(tmp_path, "berlin/berlin_000000_000019", image, mask, CITYSCAPES)
    written = Image.open(tmp_path / "submission/berlin/berlin_000000_000019.png")
    assert written.size == (11, 7)
    assert np.array_equal(np.asarray(written), np.array(CITYSCAPES.raw_ids)[mask])
    drawn = np.asarray(Image.open(tmp_path / "overlays/berlin/berlin_000000_000019.png"))
    assert drawn.shape == (7, 11, 3)
    assert drawn[0, 0].tolist() == [77, 38, 77]  # 0.6 · (128, 64, 128) over black


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name: expected one below"):
        write_prediction(tmp_path, name, torch.zeros(3, 1, 1).byte(), torch.zeros(1, 1).long(), DIGITS)


@pytest.mark.parametrize("labels", [DIGITS, ade20k()])
def test_colours_of_classes_differ(labels):
    colours = np.array(labels.palette).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(labels), dtype=int)
    # One step of the grid that they are chosen from; black is for what is ignored.
    assert distances.min() >= 51 and colours.sum(1).min() > 153


def test_the_legend_has_a_field_of_every_colour():
    pixels = np.asarray(legend(CITYSCAPES)).reshape(-1, 3)
    found = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
    assert set(CITYSCAPES.palette) <= found
