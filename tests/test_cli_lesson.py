"""`precsim lesson`: list, run, notebook, and what they say when something is missing."""

import json
from functools import partial

import pytest
from test_course import LESSON


@pytest.fixture
def course(tmp_path, monkeypatch):
    folder = tmp_path / "lessons"
    folder.mkdir()
    (folder / "42_answer.py").write_text(LESSON.replace("MORE", "True"))
    (folder / "README.md").write_text("<!-- syllabus -->\n<!-- /syllabus -->\n"
                                      "<!-- claims -->\n<!-- /claims -->\n")  # fmt: skip
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "README.md").write_text("<!-- gallery -->\n<!-- /gallery -->\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def lesson(call):
    return partial(call, "lesson")


def test_list_and_how_far_one_is(course, lesson):
    code, out, _ = lesson("list")
    assert code == 0
    assert "An answer" in out
    assert "It holds." in out
    assert lesson("run", "42", "--quick")[0] == 0
    assert "done: 1 of 1 guesses right" in lesson("list")[1]
    (fact,) = json.loads(lesson("list", "--json")[1])
    assert (fact["number"], fact["runtime_s"]) == ("42", 1.0)
    assert (fact["idea"], fact["learn"]) == ("It holds.", "that.")


def test_quick_replaces_no_figure_and_a_run_does(course, lesson):
    figures = course.parent / "figures"
    code, out, _ = lesson("run", "42", "--quick")
    assert code == 0
    assert "3 of 3 claims hold" not in out  # one seed: two claims
    assert "2 of 2 claims hold" in out
    assert "You: 1 of 1 guesses right, 0 of 0 exercises solved" in out
    assert not (figures / "42_answer.png").exists()
    assert lesson("run", "42")[0] == 0
    assert (figures / "42_answer.png").exists()
    assert "42_answer" not in (figures / "README.md").read_text()


def test_all_in_full_writes_the_pages(course, lesson):
    assert lesson("run", "--all", "--full")[0] == 0
    assert (
        "| 42 | it is forty-two | Adams 1979 | 42; 43; 44 | yes |"
        in (course / "README.md").read_text()
    )
    assert "![The answer.]" in (course.parent / "figures" / "README.md").read_text()


@pytest.mark.parametrize("how", ["--answers", "--full", "--all"])
def test_an_answer_comes_after_the_guess_or_where_it_is_asked_for(course, lesson, how):
    unguessed = LESSON.replace("MORE", "True").replace('it?", 42, 42', "it?\", None, 'forty'")
    (course / "42_answer.py").write_text(unguessed)
    code, out, _ = lesson("run", "42")
    assert code == 0
    assert "how much is it?: what is your guess?" in out
    assert "waits for you" in out
    assert "forty\n" not in out
    assert "there is more" not in out, "what comes after a prediction tells its answer"
    assert not (course.parent / "figures" / "42_answer.png").exists()
    code, out, _ = lesson("run", *(["42"] if how != "--all" else []), how)
    assert code == 0
    assert "how much is it?: forty  (no guess)" in out
    assert "there is more" in out


def test_a_quick_run_names_its_figures_by_name_only(course, lesson):
    assert "figure   42_answer.png (and" in lesson("run", "42", "--quick")[1]
    assert "figure   figures/42_answer.png (and" in lesson("run", "42")[1]


def test_a_claim_that_fails_is_exit_1(course, lesson):
    (course / "42_answer.py").write_text(LESSON.replace("MORE", "1 > 2"))
    code, out, err = lesson("run", "42")
    assert code == 1
    assert "there is more" in out
    assert "1 of 1 lessons" in err
    assert "The lesson ends at one that does not." in out
    assert "stopped: a claim does not hold" in lesson("list")[1]


def test_a_slip_of_the_reader_is_shown_where_it_is(course, lesson):
    (course / "42_answer.py").write_text(LESSON.replace("MORE", "1 / 0"))
    code, _, err = lesson("run", "42")
    assert code == 1
    assert 'check("there is more", 1 / 0)' in err
    assert "ZeroDivisionError" in err


def test_a_lesson_that_is_no_python_shows_the_line(course, lesson):
    text = LESSON.replace("MORE", "True") + "\n    retrun 3\n"
    (course / "42_answer.py").write_text(text)
    code, _, err = lesson("run", "42")
    assert code == 1
    wrong = text.splitlines().index("    retrun 3") + 1
    assert f"42_answer.py does not start: line {wrong}: retrun 3 (" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "which lesson"),
        (("run", ""), "expected one of 00, 42"),
        (("run", "7"), "expected one of 00, 42"),
        (("run", "42", "--quick", "--full"), "opposites"),
        (("notebook", "x"), "expected one of 00, 42"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(course, lesson, words, said):
    (course / "00_tour.py").write_text(LESSON.replace("# 42 -", "# 00 -").replace("MORE", "True"))
    code, _, err = lesson(*words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_page_without_its_marks(course, lesson):
    (course / "README.md").write_text("no marks")
    code, _, err = lesson("run", "--all")
    assert code == 2
    assert "<!-- syllabus -->" in err


def test_notebook(course, lesson, tmp_path):
    pytest.importorskip("jupytext", exc_type=ImportError)
    code, out, _ = lesson("notebook", "42", "-o", tmp_path / "made")
    assert code == 0
    assert (tmp_path / "made" / "42_answer.ipynb").exists()
    assert "42_answer.ipynb" in out
