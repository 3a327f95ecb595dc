"""What the head of a lesson says, and how lessons are found."""

import pytest

from precsim.lesson.catalogue import (
    LessonHeadError,
    NoLessonsError,
    find,
    lesson,
    lessons,
    lessons_folder,
    read,
)

HEAD = """\
# %% [markdown]
# # 09 - The plateau: why one number works
#
# **One idea.** A loss scale has
# two edges.
#
# *You will* train. *You learn* what each edge is.
#
# *Needs:* lesson 08.
# *Runtime:* about 40 s, one CPU core.
# *Paper:* Micikevicius et al. 2018.
# *Writes:* `figures/09_plateau.png` (The loss over the scale.)

# %%
print("hello")
"""


@pytest.fixture
def folder(tmp_path):
    course = tmp_path / "lessons"
    course.mkdir()
    (course / "09_plateau.py").write_text(HEAD)
    return course


def test_head(folder):
    head = lesson(folder, "9")
    assert (head.number, head.title) == ("09", "The plateau: why one number works")
    assert head.idea == "A loss scale has two edges."
    assert head.learn == "what each edge is."
    assert (head.needs, head.runtime) == ("lesson 08.", 40.0)
    assert head.writes == {"09_plateau": "The loss over the scale."}


@pytest.mark.parametrize(
    ("field", "said"),
    [("*Needs:*", r"\*Needs:\*"), ("about 40 s", "Runtime"), ("**One idea.**", "One idea"),
     ("# # 09 - ", "a title"), ("*You learn*", "You learn"), ("`figures/", "Writes")],
)  # fmt: skip
def test_what_is_missing_is_named(folder, field, said):
    (folder / "09_plateau.py").write_text(HEAD.replace(field, ""))
    with pytest.raises(LessonHeadError, match=said):
        read(folder / "09_plateau.py")


def test_lessons_are_found_from_anywhere_inside(folder, tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert find(inside) == find(folder) == folder
    assert lessons_folder(inside) == folder
    assert [head.number for head in lessons(folder)] == ["09"]


def test_a_number_that_is_not_there(folder):
    with pytest.raises(NoLessonsError, match="expected one of 09"):
        lesson(folder, "3")
