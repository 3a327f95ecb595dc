"""The lessons in Chinese are the English ones: same code, same numbers, cell by cell."""

import re
from pathlib import Path

import pytest

LESSONS = Path(__file__).resolve().parents[1] / "lessons"
TRANSLATED = sorted(path.name for path in (LESSONS / "zh").glob("[0-9][0-9]_*.py"))

CHINESE = re.compile(r"[\u4e00-\u9fff]")
CODE = re.compile(r"`[^`]+`")
NUMBERS = re.compile(r"2\^-?\d+|\d{3,}(?:\.\d+)?|\d+\.\d+")
"""Numbers that no language writes as a word."""


def cells(path):
    """Return (is prose, text) of every cell of a percent script."""
    parts = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [(part.startswith(" [markdown]"), part) for part in parts]


def prose(text):
    """Return a prose cell as one line, without comment signs."""
    return " ".join(re.sub(r"^# ?", "", line) for line in text.splitlines()[1:])


def test_there_are_translations():
    assert len(TRANSLATED) >= 3


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_code_is_that_of_the_english_lesson(name):
    english, chinese = cells(LESSONS / name), cells(LESSONS / "zh" / name)
    assert [is_prose for is_prose, _ in chinese] == [is_prose for is_prose, _ in english]
    code = [text for is_prose, text in english if not is_prose]
    assert [text for is_prose, text in chinese if not is_prose] == code


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_prose_is_chinese_and_has_the_numbers_and_the_code_of_the_english(name):
    both = zip(cells(LESSONS / name), cells(LESSONS / "zh" / name), strict=True)
    for (is_prose, english), (_, chinese) in both:
        if not is_prose:
            continue
        assert CHINESE.search(chinese)
        for found in (CODE, NUMBERS):
            missing = set(found.findall(prose(english))) - set(found.findall(prose(chinese)))
            assert not missing, chinese[:60]
