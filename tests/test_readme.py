"""What the README shows is what happens."""

import doctest
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_in_the_readme_print_what_it_says():
    results = doctest.testfile(str(README), False, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 8
    assert results.failed == 0


def test_every_figure_in_the_readme_exists():
    text = README.read_text(encoding="utf-8")
    shown = [part.split(")")[0] for part in text.split("](")[1:]]
    figures = [name for name in shown if name.startswith("figures/")]
    assert figures
    for name in figures:
        assert (README.parent / name).is_file(), name
