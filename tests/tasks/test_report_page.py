"""Pages: escaping, sections that fail, figures, colours."""

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.report import figures, page
from tasks.report.colors import NORM_COLORS
from tasks.report.page import Html, Section, write_page

NASTY = """<script>alert("x")</script>&'"""
ESCAPED = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#x27;"


@pytest.mark.parametrize(
    "build",
    [
        lambda: page.paragraph(NASTY),
        lambda: page.subheading(NASTY),
        lambda: page.code(NASTY),
        lambda: page.details(NASTY, "x"),
        lambda: page.details("x", NASTY),
        lambda: page.facts([(NASTY, "x")]),
        lambda: page.tiles([("x", NASTY)]),
        lambda: page.card(NASTY, "x", "x"),
        lambda: page.table([NASTY], [], "x"),
        lambda: page.table(["x"], [[NASTY]], "x"),
        lambda: page.table(["x"], [[("x", NASTY)]], "x"),
        lambda: page.table(["x"], [], NASTY),
        lambda: figures.picture(torch.zeros(3, 4, 4, dtype=torch.uint8), NASTY),
        lambda: figures.picture(torch.zeros(3, 4, 4, dtype=torch.uint8), "x", NASTY),
        lambda: figures.figure(figures.plot()[0], NASTY),
    ],
)
def test_what_comes_from_data_is_escaped(build):
    text = build()
    assert "<script" not in text and ESCAPED in text


def test_a_section_that_fails_is_told_and_the_others_stand(tmp_path):
    def fail():
        raise RuntimeError("no <picture>\nat hand")

    with pytest.warns(UserWarning, match="'Pictures' could not be drawn: no <picture>; at hand"):
        write_page(
            tmp_path / "page.html",
            NASTY,
            [Section("Pictures", fail), Section("Numbers", lambda: Html("<p>1 2 3</p>"))],
        )
    text = (tmp_path / "page.html").read_text()
    assert "could not be drawn: no &lt;picture&gt;; at hand" in text
    assert "<p>1 2 3</p>" in text and f"<title>{ESCAPED}</title>" in text and "<script" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"], "no temporary file is left"


def test_a_page_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def stop():
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(path, "new", [Section("x", stop)])
    assert path.read_text() == "old"


def test_a_figure_is_well_formed_and_shows_names_as_they_are():
    drawing, axes = figures.plot()
    axes.imshow(np.eye(2), cmap=figures.heat_colors())
    axes.set_xticks([0, 1], ["$\\frac", "a <b> & c"])  # no formula, no markup
    text = figures.figure(drawing, "two classes", "a caption")
    root = ET.fromstring(text)
    shown = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"$\\frac", "a <b> & c"} <= set(shown)
    svg = next(root.iter("{http://www.w3.org/2000/svg}svg"))
    assert svg.attrib["role"] == "img" and svg.attrib["aria-label"] == "two classes"
    assert "#000000" not in text, "black ink would not be seen on dark paper"
    fetched = re.findall(r'(?:href|src)="(?!data:|#)([^"]*)"', text)
    assert fetched == []


def test_figures_of_a_page_share_no_identifier():
    def identifiers():
        drawing, axes = figures.plot()
        axes.plot([0, 1], [0, 1], "o")
        return set(re.findall(r'\bid="([^"]*)"', figures.figure(drawing, "x")))

    first, second = identifiers(), identifiers()
    assert first and not first & second


@pytest.mark.parametrize(("height", "width", "kind"), [(32, 20, "PNG"), (300, 450, "JPEG")])
def test_a_picture_is_a_small_data_uri(height, width, kind):
    levels = torch.arange(height).mul(255 // height).to(torch.uint8)
    image = torch.stack([levels, levels // 2, 255 - levels])[:, :, None].expand(3, height, width)
    source = re.search(r'src="data:image/\w+;base64,([^"]*)"', figures.picture(image, "x"))
    shown = Image.open(io.BytesIO(base64.b64decode(source[1])))
    assert shown.format == kind
    assert max(shown.size) == min(max(height, width), figures.THUMBNAIL)
    assert shown.width / shown.height == pytest.approx(width / height, rel=0.02)  # whole pixels
    top, expected = np.asarray(shown)[0, 0].astype(int), image[:, 0, 0].tolist()
    # The mean of three rows of a gradient, and JPEG's loss, are a few levels.
    assert np.abs(top - expected).max() <= (0 if kind == "PNG" else 12)


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as dichromats see it.
VISION = {
    "full": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, vision):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(VISION[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(TO_XYZ @ linear / TO_XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_normalizers_are_told_apart(vision):
    assert set(NORM_COLORS) == {"bn", "in", "ln", "gn", "sn", "ssn", "cbn", "en"}
    for one, other in itertools.combinations(NORM_COLORS, 2):
        distance = np.linalg.norm(lab(NORM_COLORS[one], vision) - lab(NORM_COLORS[other], vision))
        # Two are just told apart at 2.3 side by side; thin lines need several times that.
        assert distance > 15, (one, other, distance)
