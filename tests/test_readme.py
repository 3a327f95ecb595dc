"""What the README shows is what happens, in English and in Chinese."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PAGES = [pytest.param("README.md", 8, id="English"), pytest.param("README.zh-CN.md", 8, id="中文")]


@pytest.mark.parametrize(("page", "at_least"), PAGES)
def test_the_examples_in_the_readme_print_what_it_says(page, at_least):
    results = doctest.testfile(
        str(ROOT / page), False, optionflags=doctest.ELLIPSIS, encoding="utf-8"
    )
    assert results.attempted >= at_least
    assert results.failed == 0


@pytest.mark.parametrize(("page", "_"), PAGES)
def test_every_file_that_the_readme_points_at_exists(page, _):
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [part.split(")")[0] for part in text.split("](")[1:]]
    files = [name for name in shown if "://" not in name]
    assert any(name.startswith("figures/") for name in files)
    assert [name for name in files if not (ROOT / name).is_file()] == []
