"""Pages in a real browser: nothing fetched, no error, no sideways scroll, in order, sortable."""

from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import torch
from browser import Browser, needs_browser
from test_report_runs import make_run

from tasks.classification.mistakes import EvaluationRecord
from tasks.classification.report import classification_sections
from tasks.report.facts import RunFacts
from tasks.report.index import write_index
from tasks.report.run import write_report

pytestmark = needs_browser
LONG = "a_class_whose_name_is_long_and_has_no_space_to_break_at_" * 2


class Data:
    """Classes with names that try a page."""

    def picture(self, split, index):
        return torch.arange(3 * 100 * 200).reshape(3, 100, 200).remainder(251).to(torch.uint8)

    def class_name(self, index):
        return [f"<script>throw 1</script>{index}", f"$x_{index} & 'y'", LONG][index % 3]

    def sample_name(self, split, index):
        return f'val/"{index}".png'


def write_run(folder, classes, **facts):
    """A run folder with its report: `classes` classes, most of them confused."""
    make_run(folder, norm=facts["norm"])
    record = EvaluationRecord(classes)
    record.start("test")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300).remainder(classes)
    record.update(torch.randn(300, classes, generator=generator), labels, torch.arange(300))
    record.finish()
    sections = classification_sections(record.outcome, Data())
    write_report(folder, RunFacts("classification", folder.name, monitor="val/top1", **facts), sections)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Runs and their index; the order of their names is not that of any value."""
    root = tmp_path_factory.mktemp("runs")
    runs = root / "classification"
    tested = {"test/top1": 0.5, "test/top5": 1.0}
    write_run(runs / "b 10", 10, norm="en", best=0.9, seconds=100.0, epochs=9, test=tested)
    write_run(runs / "b 9", 60, norm="bn", best=0.1, seconds=9.0, epochs=100)
    write_run(runs / LONG[:100], 100, norm="sn", best=None)
    write_index(root)
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


PAGES = ["index.html", "classification/b 10/report.html", "classification/b 9/report.html"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_opens_on_its_own_and_fits(browser, site, page, width, dark):
    assert browser.open(site / page, width, dark) == []
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider lies in a box that scrolls, or it could not be read.
    wide = """[...document.querySelectorAll("main *")].filter((node) =>
        node.getBoundingClientRect().right > innerWidth + 1 && !node.closest(".scroll, pre")).length"""
    assert browser.evaluate(wide) == 0
    small = """Math.min(...[...document.querySelectorAll("svg text")].map(
        (node) => node.getBoundingClientRect()).map((box) => Math.min(box.width, box.height) || 99))"""
    assert browser.evaluate(small) > 3, "text in a figure is lost"


def luminance(color):
    channels = [int(part.strip(" rgba()")) / 255 for part in color.split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("what", ["p", ".note", "svg text", "figcaption", "nav a", "dt"])
def test_text_stands_out(browser, site, what, dark):
    browser.open(site / PAGES[1], dark=dark)
    style = f"getComputedStyle(document.querySelector({what!r}))"
    ink = browser.evaluate(f"{style}.{'fill' if 'svg' in what else 'color'}")
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    high, low = sorted([luminance(ink), luminance(paper)], reverse=True)
    assert (luminance(paper) < 0.1) == dark
    assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2, AA


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_heard(browser, site, page):
    browser.open(site / page)
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("document.title")
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.evaluate("[...document.images].every((image) => image.alt && image.naturalWidth > 0)")
    unnamed = "svg:not([role=img][aria-label]), .scroll:not([aria-label][tabindex])"
    assert browser.evaluate(f"document.querySelectorAll('{unnamed}').length") == 0
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    assert browser.evaluate("[...document.links].every((a) => !a.hash || document.querySelector(a.hash))")


def column(browser, number):
    cells = (
        f"[...document.querySelectorAll('table.runs tbody tr')].map((row) => row.cells[{number}].innerText)"
    )
    return browser.evaluate(cells)


def heading(browser, number):
    return f"document.querySelectorAll('table.runs thead th')[{number}]"


def test_the_index_is_sorted_by_click(browser, site):
    browser.open(site / "index.html")
    names = browser.evaluate("[...document.querySelectorAll('table.runs thead th')].map((h) => h.innerText)")
    assert column(browser, 0) == [LONG[:100], "b 10", "b 9"]  # as paths are sorted
    click = f"{heading(browser, 0)}.querySelector('button').click()"
    browser.evaluate(click)
    assert column(browser, 0) == [LONG[:100], "b 9", "b 10"], "numbers in names count as numbers"
    browser.evaluate(click)
    assert column(browser, 0) == ["b 10", "b 9", LONG[:100]]
    assert browser.evaluate(f"{heading(browser, 0)}.ariaSort") == "descending"
    for name, rising in {
        "best validation": ["b 9", "b 10"],
        "epochs": ["b 10", "b 9"],
        "time": ["b 9", "b 10"],  # 9.0 s before 1 min 40 s
    }.items():
        click = f"{heading(browser, names.index(name))}.querySelector('button').click()"
        browser.evaluate(click)
        assert column(browser, 0) == [*rising, LONG[:100]]
        browser.evaluate(click)
        assert column(browser, 0) == [*rising[::-1], LONG[:100]], "what has no value stays last"
    sorted_by = "[...document.querySelectorAll('table.runs th[aria-sort]')].length"
    assert browser.evaluate(sorted_by) == 1 and browser.problems == []


def test_the_index_is_sorted_by_keyboard(browser, site):
    browser.open(site / "index.html")
    for _ in range(20):
        browser.press("Tab")
        if browser.evaluate("document.activeElement.closest('th')?.cellIndex") == 0:
            break
    assert browser.evaluate("document.activeElement.tagName") == "BUTTON"
    for expected in ("ascending", "descending"):
        browser.press("Enter", text="\r")
        assert browser.evaluate(f"{heading(browser, 0)}.ariaSort") == expected
    assert column(browser, 0) == ["b 10", "b 9", LONG[:100]]


def test_the_index_is_a_table_without_scripts(browser, site):
    browser.open(site / "index.html", scripts=False)
    assert column(browser, 0) == [LONG[:100], "b 10", "b 9"]
    assert browser.evaluate("document.querySelectorAll('button').length") == 0
    assert browser.problems == []


def test_links_of_the_index_lead_to_reports(browser, site):
    browser.open(site / "index.html")
    links = browser.evaluate("[...document.querySelectorAll('table.runs a')].map((a) => a.href)")
    titles = []
    for link in links:
        browser.open(Path(unquote(urlparse(link).path)))
        titles.append(browser.evaluate("document.title"))
    assert titles == [f"classification: {name}" for name in (LONG[:100], "b 10", "b 9")]


def test_what_would_be_fetched_is_seen(browser, tmp_path):
    # The checks above could not fail if the browser did not tell.
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><html lang="en"><img src="nowhere.png"><script>throw Error("x")</script>')
    assert browser.open(page) == [(tmp_path / "nowhere.png").as_uri()]
    assert any("Uncaught" in problem for problem in browser.problems)
