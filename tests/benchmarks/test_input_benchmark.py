"""What the input benchmark compares gives the same pixels from pictures like photographs."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks import input as input_benchmark
from benchmarks import measure
from benchmarks.photographs import photograph


def test_photographs_have_the_size_and_spectrum_of_photographs(tmp_path):
    paths = input_benchmark.write_photographs(tmp_path, 4, 500, 375)
    sizes = [path.stat().st_size for path in paths]
    # ImageNet's training files take 110 kB on average.
    assert 95e3 < np.mean(sizes) < 135e3
    assert not np.array_equal(photograph(np.random.default_rng(0)), photograph(np.random.default_rng(1)))

    picture = photograph(np.random.default_rng(0), 512, 512).mean(-1)
    power = np.abs(np.fft.fft2(picture - picture.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    bands = 2.0 ** np.arange(-7, -2.5, 0.5)
    of_band = [power[(frequency >= low) & (frequency < high)].mean() for low, high in pairwise(bands)]
    slope = np.polyfit(np.log(bands[:-1]), np.log(of_band), 1)[0]
    # Power falls as 1/f² (van der Schaaf and van Hateren 1996: exponents 1.5 to 2.5 of single images).
    assert -2.5 < slope < -1.5


# The reference with torchvision's decoder calls functions that a later release will be without.
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_pipelines_give_the_same_batch(tmp_path):
    paths = input_benchmark.write_photographs(tmp_path, 4, 320, 240)
    gaps = input_benchmark.differences(paths)
    assert set(gaps) == set(input_benchmark.REFERENCES)
    for name, gap in gaps.items():
        # PIL rounds to whole levels between the two directions as torch does, from weights of another
        # precision: a level, seldom. Decoders differ by a level or two between releases of libjpeg.
        assert gap["mean"] < 0.1 and gap["max"] < (1.01 if name == input_benchmark.PIL else 3), name


def test_input_benchmark_reports_every_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["input", "--rounds", "2", "--batch", "2", "--width", "80", "--height", "60"]
    )
    threads = torch.get_num_threads()
    try:
        input_benchmark.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "input.json").read_text())
    rows = {row["pipeline"]: row for row in result["rows"]}
    assert list(rows) == [*input_benchmark.REFERENCES, input_benchmark.OURS, input_benchmark.BYTES]
    ours = rows[input_benchmark.OURS]
    assert ours["time_over_ours"] == 1 and result["machine"]["threads"] == 1
    assert ours["images_per_second"] == pytest.approx(2 / (ours["ms"] / 1e3), rel=1e-6)
    assert "| torchvision, PIL | " in capsys.readouterr().out
