"""Scores against the evaluation of cityscapesScripts and the formula of ADE20K."""

import numpy as np
import pytest
import torch
from PIL import Image
from seg_trees import numbered

from tasks.segmentation.labels import CITYSCAPES, IGNORE
from tasks.segmentation.metrics import ADE20KScores, CityscapesScores, SegmentationScores

RAW = np.array(CITYSCAPES.raw_ids, np.uint8)


def official(folder, pairs, monkeypatch):
    """What `evaluateImgLists` of cityscapesScripts says about (predicted, label, instance ids) of raw ids."""
    # Of numpy before 2.4, which the installed release was written for.
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    files = []
    for number, (predicted, labels, instances) in enumerate(pairs):
        names = [folder / f"{number}_{kind}.png" for kind in ("pred", "labelIds", "instanceIds")]
        for name, ids in zip(names, (predicted, labels, instances), strict=True):
            Image.fromarray(ids).save(name)
        files.append([str(name) for name in names[:2]])
    for name, value in {"quiet": True, "JSONOutput": False}.items():
        monkeypatch.setattr(script.args, name, value)
    return script.evaluateImgLists(*map(list, zip(*files, strict=True)), script.args)


def street(generator, kinds, size=(40, 60), right=0.6):
    """Predicted and label ids in blocks, and instance ids; some of the prediction is wrong."""
    coarse = generator.choice(kinds, (size[0] // 10, size[1] // 10)).astype(np.uint8)
    labels = np.kron(coarse, np.ones((10, 10), np.uint8))
    guesses = generator.choice(RAW[[0, 5, 11, 13, 18]], size).astype(np.uint8)
    known = np.where(np.isin(labels, RAW), labels, RAW[0])
    predicted = np.where(generator.random(size) < right, known, guesses)
    return predicted, labels, numbered(labels)


CASES = {
    # every id of the files, those of no class among them
    "everything": [np.arange(34)] * 3,
    # most classes nowhere
    "absent classes": [np.array([7, 26, 0]), np.array([7, 21])],
    # an image without a single labelled pixel
    "all ignored": [np.array([0, 3, 29]), np.array([7, 24, 33])],
    "nothing but ignored": [np.array([0, 4])],
    "no objects": [np.array([7, 8, 11])],
}


def train_ids(raw):
    return torch.from_numpy(CITYSCAPES.train_ids()[raw].astype(np.uint8)).long()


@pytest.mark.parametrize("case", CASES)
def test_cityscapes_scores_are_those_of_its_script(case, tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    pairs = [street(generator, kinds) for kinds in CASES[case]]
    expected = official(tmp_path, pairs, monkeypatch)
    scores = CityscapesScores()
    for predicted, labels, instances in pairs:
        scores.update(train_ids(predicted), train_ids(labels), torch.from_numpy(instances.astype(np.int32)))
    # Both count integers and divide in float64; sums of weights are added in another order.
    close = {"rtol": 1e-12, "atol": 0, "equal_nan": True}
    names = CITYSCAPES.names
    found = scores.compute()
    np.testing.assert_allclose(found["iou"], [expected["classScores"][n] for n in names], **close)
    iiou = [expected["classInstScores"][n] for n in names]
    np.testing.assert_allclose(found["class_iiou"], iiou, **close)
    np.testing.assert_allclose(found["miou"], expected["averageScoreClasses"], **close)
    if case not in ("nothing but ignored", "no objects"):
        np.testing.assert_allclose(found["iiou"], expected["averageScoreInstClasses"], **close)


def test_iiou_by_hand():
    """Two cars of 4 and 1 pixels: half of the large one is found, all of the small one; a road is no car."""
    instances = torch.tensor([[26000, 26000, 26000, 26000, 26001, 7]])
    mask = torch.tensor([[13, 13, 13, 13, 13, 0]])
    predicted = torch.tensor([[13, 13, 0, 0, 13, 13]])
    scores = CityscapesScores()
    scores.update(predicted, mask, instances)
    mean_size = 12794.0202738185
    tp, fn = mean_size * (2 / 4 + 1 / 1), mean_size * 2 / 4
    # Float64 sums of three terms.
    assert scores.compute()["class_iiou"][13].item() == pytest.approx(tp / (tp + fn + 1), rel=1e-14)
    assert scores.compute()["iiou"].isfinite()


def test_without_instances_there_is_no_iiou():
    scores = CityscapesScores()
    scores.update(torch.tensor([13, 0]), torch.tensor([13, 13]))
    assert scores.compute()["iiou"].isnan()


def ade(pairs, num_classes):
    """`intersectionAndUnion` and `pixelAccuracy` of ADE20K's kit: labels from 1, 0 is ignored."""
    intersection, union, right, valid = np.zeros(num_classes), np.zeros(num_classes), 0, 0
    for predicted, labels in pairs:
        seen = predicted * (labels > 0)
        hits = seen * (seen == labels)
        inter, pred, label = (
            np.histogram(ids, bins=num_classes, range=(1, num_classes))[0] for ids in (hits, seen, labels)
        )
        intersection += inter
        union += pred + label - inter
        right += np.sum((labels > 0) * (predicted == labels))
        valid += np.sum(labels > 0)
    iou = intersection / (union + np.spacing(1))
    return iou, right / (valid + 1e-10)


def test_ade_scores_are_those_of_its_formula():
    generator = np.random.default_rng(0)
    pairs = []
    for size in ((90, 70), (31, 57)):
        labels = generator.integers(0, 151, size)
        predicted = np.where(
            generator.random(size) < 0.4, np.maximum(labels, 1), generator.integers(1, 151, size)
        )
        pairs.append((predicted, labels))
    pairs.append((np.full((5, 5), 3), np.zeros((5, 5), int)))  # nothing is labelled
    iou, accuracy = ade(pairs, 150)
    scores = ADE20KScores(150)
    for predicted, labels in pairs:
        mask = torch.from_numpy(np.where(labels == 0, IGNORE, labels - 1))
        scores.update(torch.from_numpy(predicted - 1), mask)
    found = scores.compute()
    # The kit adds 2⁻⁵² and 10⁻¹⁰ to its denominators.
    np.testing.assert_allclose(found["iou"], iou, rtol=1e-12)
    assert found["miou"].item() == pytest.approx(iou.mean(), rel=1e-12)
    assert found["pixel_acc"].item() == pytest.approx(accuracy, rel=1e-11)
    assert found["mean_of_both"].item() == pytest.approx((iou.mean() + accuracy) / 2, rel=1e-11)


def test_a_class_that_is_nowhere_does_not_count():
    scores = SegmentationScores(4)
    # Class 2 is nowhere, class 3 is predicted alone; over ignored pixels nothing counts.
    scores.update(torch.tensor([0, 0, 1, 3, 2]), torch.tensor([0, 1, 1, 0, IGNORE]))
    np.testing.assert_array_equal(scores.compute()["iou"], [1 / 3, 1 / 2, np.nan, 0])
    assert scores.compute()["miou"].item() == pytest.approx((1 / 3 + 1 / 2) / 3)


def test_parts_of_a_split_add_up():
    """What ranks counted is summed: the same scores as of one process that saw everything."""
    generator = torch.Generator().manual_seed(0)
    predicted, masks = (torch.randint(0, 5, (6, 8, 8), generator=generator) for _ in range(2))
    whole, parts = SegmentationScores(5), [SegmentationScores(5) for _ in range(2)]
    whole.update(predicted, masks)
    parts[0].update(predicted[:5], masks[:5])
    parts[1].update(predicted[5:], masks[5:])
    assert all(part._reductions["confusion"].__name__ == "dim_zero_sum" for part in parts)
    parts[0].confusion += parts[1].confusion
    assert torch.equal(parts[0].confusion, whole.confusion)


def test_shapes_have_to_agree():
    with pytest.raises(ValueError, match=r"predicted: expected the shape \(2, 3\), got \(3, 2\)"):
        SegmentationScores(2).update(torch.zeros(3, 2).long(), torch.zeros(2, 3).long())
