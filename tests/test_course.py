"""Running lessons, and the pages that are made of what they found."""

import pytest

from precsim.lesson import course
from precsim.lesson.catalogue import read
from precsim.lesson.course import study, write_parts
from precsim.lesson.progress import note, progress, told

LESSON = """\
# %% [markdown]
# # 42 - An answer: short | sweet
#
# **One idea.** It holds.
#
# *You will* see. *You learn* that.
#
# *Needs:* nothing. *Runtime:* about 1 s. *Paper:* none.
# *Writes:* `figures/42_answer.png` (The answer.)

# %%
import matplotlib.pyplot as plt

from precsim.lesson import check, predict, save, seeds

for seed in seeds():
    check(f"seed {seed}: it is forty-two", True, measured=42 + seed, source="Adams 1979")
predict("how much is it?", 42, 42)
check("there is more", MORE)
fig, axes = plt.subplots()
save(fig, "42_answer", {"x": [1]})
"""


@pytest.fixture
def head(tmp_path):
    path = tmp_path / "42_answer.py"
    path.write_text(LESSON.replace("MORE", "True"))
    return read(path)


def test_a_lesson_runs_and_is_remembered(head, tmp_path):
    outcome = study(head, "full", tmp_path / "figures")
    assert not outcome.failed
    assert len(outcome.session.checks) == 4
    assert {path.name for path in outcome.session.saved} == {
        "42_answer.png", "42_answer.svg", "42_answer.json",
    }  # fmt: skip
    table = course.claims([outcome]).splitlines()
    assert table[2] == "| 42 | it is forty-two | Adams 1979 | 42; 43; 44 | yes |"
    assert len(table) == 4
    note(tmp_path, outcome)
    assert told(progress(tmp_path)["42"]) == ("done: 1 of 1 guesses right, 0 of 0 exercises solved")


def test_a_claim_that_fails_is_in_the_outcome(head, tmp_path):
    head.path.write_text(LESSON.replace("MORE", "1 > 2"))
    outcome = study(head, "quick", tmp_path)
    assert "there is more" in outcome.failed
    assert course.claims([outcome]).endswith("| there is more |  |  | **no** |")


def test_a_lesson_waits_for_a_guess_and_knows_so(head, tmp_path):
    head.path.write_text(LESSON.replace("MORE", "True").replace('it?", 42', 'it?", None'))
    outcome = study(head, "quick", tmp_path)
    assert outcome.waits
    assert not outcome.failed
    assert [one.claim for one in outcome.session.checks] == ["seed 0: it is forty-two"]
    assert not outcome.session.saved
    note(tmp_path, outcome)
    assert told(progress(tmp_path)["42"]).startswith("begun: 0 of 1 guesses right")
    assert not study(head, "quick", tmp_path, answers=True).waits


def test_pages(head, tmp_path):
    assert "![The answer.](42_answer.png)" in course.gallery([head])
    assert r"| 42 | [An answer: short \| sweet](42_answer.py) | It holds." in course.syllabus(
        [head]
    )
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    write_parts(page, {"a": "new"})
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="expected a line <!-- b -->"):
        write_parts(page, {"a": "newer", "b": "x"})
    assert "new\n" in page.read_text()


def test_progress_that_cannot_be_read_is_none(tmp_path):
    assert progress(tmp_path) == {}
    (tmp_path / ".progress.json").write_text("{")
    assert progress(tmp_path) == {}
    assert told(None) == ""
