"""The page of a comparison in a real browser, with failed and diverged runs among the others."""

import signal
from urllib.parse import unquote, urlparse

import pytest
from browser import Browser, needs_browser
from compared_runs import stand_in
from task_paths import DIGITS

from tasks.compare import session
from tasks.compare.__main__ import main
from tasks.report.colors import norm_color

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    line = ["--config", str(DIGITS), "--runs_dir", str(folder / "runs"), "--name", "one"]
    line += ["--norms", "bn", "en", "sn", "ln", "--seeds", "0", "1", "2", "3", "4"]
    with pytest.MonkeyPatch.context() as patch:
        stand_in(folder, patch)
        patch.setattr(session, "cores", lambda: 2)
        with pytest.raises(SystemExit, match="1"):  # ln fails
            main(line)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return folder / "runs" / "compare" / "one" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_opens_on_its_own_and_fits(browser, page, width, dark):
    assert browser.open(page, width, dark) == [] and browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll("main *")].filter((node) =>
        node.getBoundingClientRect().right > innerWidth + 1 && !node.closest(".scroll, pre")).length"""
    assert browser.evaluate(wide) == 0
    heights = """[...document.querySelectorAll("svg text")].map((node) => node.getBoundingClientRect())
        .map((box) => Math.min(box.width, box.height))"""
    assert min(browser.evaluate(heights)) > 3, "text in a figure is lost"


def test_the_page_says_who_wins(browser, page):
    browser.open(page)
    titles = browser.evaluate("[...document.querySelectorAll('h2')].map((h) => h.innerText)")
    assert titles == ["Who wins", "Validation", "Table", "Failures", "Runs", "What was run"]
    text = browser.evaluate("document.body.innerText")
    # All five differences are 5 points: of 32 ways to flip their signs, 2 are as far from zero.
    assert "en is better than bn: +5.00 ± 0.00 points, p = 0.0625 by flipping signs." in text
    assert "sn is worse than bn: -30.00 ± 0.00 points" in text
    assert "ln and bn: no seed that both ln and bn have finished." in text
    assert "last words of ln" in text and "50.00 (diverged)" in text
    assert browser.evaluate("document.querySelectorAll('.failed').length") == 0
    labels = browser.evaluate("[...document.querySelectorAll('svg')].map((s) => s.ariaLabel)")
    assert "bn 82.00 ± 1.96, seeds 80.00, 81.00, 82.00, 83.00, 84.00" in labels[0]  # 2.7764 · 1.5811 / √5
    assert labels[1].startswith("val/top1 in per cent over epochs, mean over seeds: bn from 50.20 to 70.20")
    svg = browser.evaluate("document.querySelectorAll('svg')[0].outerHTML")
    assert all(norm_color(norm) in svg for norm in ("bn", "en", "sn")) and norm_color("ln") not in svg


def test_links_lead_to_reports_and_logs(browser, page):
    browser.open(page)
    links = browser.evaluate("[...document.querySelectorAll('table.runs a')].map((a) => a.href)")
    paths = [unquote(urlparse(link).path) for link in links]
    root = page.parent
    assert str(root / "classification" / "en-seed3" / "report.html") in paths
    assert str(root / "logs" / "ln-seed0.log") in paths
    assert len(paths) == 15 + 20  # a failed run has a log alone
    assert all((root / path).is_file() for path in paths)
