"""A prediction waits for its guess: asked on a terminal, written elsewhere; and nothing tells before."""

import builtins
import subprocess
import sys

import pytest

from precsim.lesson import predict
from precsim.lesson.predictions import NoGuess
from precsim.lesson.session import Session, running


@pytest.fixture
def session():
    with running(Session()) as found:
        yield found


@pytest.fixture
def types(monkeypatch):
    """Sit at a terminal, and type these lines; then the input ends."""

    def sit(*lines):
        waiting = list(lines)

        def read(_=""):
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        monkeypatch.setattr(builtins, "input", read)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    return sit


def test_without_a_guess_the_answer_is_not_told(session, capsys):
    with pytest.raises(NoGuess, match="waits for a guess: how much"):
        predict("how much", None, 42)
    said = capsys.readouterr().out
    assert "how much: what is your guess?" in said
    assert "42" not in said
    assert session.predictions == {"how much": None}


def test_a_question_mark_shows_the_answer(session, capsys):
    predict("how much", "?", 42)
    assert session.predictions == {"how much": None}
    assert "how much: 42  (no guess)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "answer", "right"),
    [
        (["42"], 42, True),
        (["41"], 42, False),
        (["a lot", "0.5"], 0.5, True),  # no number: asked again
        (["8, 64"], [8.0, 64.0], True),
        (["as fp32; NaN"], ["as fp32", "NaN"], True),
        (["e4m3, no scale"], ["e4m3, no scale"], True),
        ([""], 42, None),
        (["?"], 42, None),
        ([], 42, None),  # the end of input
    ],
)
def test_on_a_terminal_it_is_asked_for(session, types, lines, answer, right):
    types(*lines)
    predict("how much", None, answer, tol=[0.1, 0.1] if answer == [8.0, 64.0] else None)
    assert session.predictions == {"how much": right}


def test_a_written_guess_is_not_asked_for_again(session, types):
    types("41")
    predict("how much", 42, 42)
    assert session.predictions == {"how much": True}


@pytest.mark.parametrize("words", [[], ["--answers"]])
def test_a_plain_script_ends_in_peace_or_has_its_answers(tmp_path, words):
    script = tmp_path / "lesson.py"
    script.write_text(
        "from precsim.lesson import predict\npredict('how much', None, 42)\nprint('more')\n"
    )
    ran = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ("42" in ran.stdout, "more" in ran.stdout) == (bool(words), bool(words))
