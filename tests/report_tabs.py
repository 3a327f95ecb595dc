"""What tests of the report in a browser share: Chromium, and a page about some runs in it."""

import shutil
from contextlib import contextmanager

import pytest

from precsim.report import page
from precsim.report.collect import collect

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")


@contextmanager
def chromium():
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, found, folder, **options):
    """A page about some runs by name, once it is ready."""
    path = folder / "report.html"
    shown = [collect(run, name, rows=9000, points=1) for name, run in found.items()]
    path.write_text(page.render(shown, "again"), "utf-8")
    tab = browser.new_page(**{"viewport": {"width": 1200, "height": 900}} | options)
    tab.wrong = []
    tab.on("console", lambda message: tab.wrong.append(message.text))
    tab.on("pageerror", lambda error: tab.wrong.append(str(error)))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
    return tab


def slide(view, to):
    view.eval_on_selector(
        "#slider", "(s, to) => { s.value = to; s.dispatchEvent(new Event('input')); }", to
    )
