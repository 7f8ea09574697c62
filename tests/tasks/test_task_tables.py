"""Tables of predictions: a row a sample, there whole or not at all."""

from types import SimpleNamespace

import pytest
import torch

from tasks.callbacks import PredictionsCSV


def write(path, batches, sample_name):
    names = ("cat", "dog, wet", "cow")
    data = SimpleNamespace(sample_name=sample_name, class_name=names.__getitem__)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, world_size=1)
    columns = ("index", "predicted", "probability", "true")
    predictions = [dict(zip(columns, map(torch.tensor, batch), strict=True)) for batch in batches]
    PredictionsCSV(path).write_on_epoch_end(trainer, None, predictions, None)


BATCHES = [
    ([3, 2], [0, 1], [0.5, 0.25], [0, 2]),
    ([0], [2], [1.0], [-1]),
]


def test_one_row_a_sample_in_order(tmp_path, capsys):
    path = tmp_path / "predictions.csv"
    write(path, BATCHES, lambda split, index: f"{split}/{index}.jpg")
    assert path.read_bytes().decode().split("\r\n") == [
        "sample,predicted,probability,true",
        "predict/0.jpg,cow,1.000000,",
        'predict/2.jpg,"dog, wet",0.250000,cow',
        "predict/3.jpg,cat,0.500000,cat",
        "",
    ]
    assert capsys.readouterr().out == f"3 predictions written to {path}\n"


def test_a_table_that_fails_leaves_the_one_before(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("before")

    def no_name(split, index):
        if index == 3:
            raise KeyError(index)
        return str(index)

    with pytest.raises(KeyError):
        write(path, BATCHES, no_name)
    # A character that the file's encoding does not have stops the writer in the middle.
    with pytest.raises(UnicodeEncodeError):
        write(path, BATCHES, lambda split, index: "\ud800" if index == 3 else str(index))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
