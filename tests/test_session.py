"""Predictions and claims: what is printed, what is remembered, what ends a lesson."""

import numpy as np
import pytest

from precsim.lesson import LessonError, check, predict, quick, seeds
from precsim.lesson.session import Session, running, shown


@pytest.fixture
def session():
    with running(Session(answers=True)) as found:
        yield found


def test_a_claim_that_holds_is_remembered(session, capsys):
    check("two and two make four", 2 + 2 == 4, measured=4, source="Peano")
    (claim,) = session.checks
    assert (claim.claim, claim.holds, claim.measured, claim.source) == (
        "two and two make four", True, 4, "Peano",
    )  # fmt: skip
    assert capsys.readouterr().out == "holds    two and two make four  (measured 4)\n"


@pytest.mark.parametrize("wrong", [False, 0, np.float64("nan") > 0, np.array([True, False])])
def test_a_claim_that_fails_says_what_was_measured(session, wrong, capsys):
    with pytest.raises(LessonError, match=r"does not hold: it is so; measured: 0\.25"):
        check("it is so", wrong, measured=0.25)
    assert not session.checks[0].holds
    assert capsys.readouterr().out == "FAILS    it is so  (measured 0.25)\n"


@pytest.mark.parametrize(
    ("guess", "answer", "tol", "right"),
    [
        (None, 3, None, None),
        (3, 3, None, True),
        (4, 3, None, False),
        (0.51, 0.5, None, True),
        (0.6, 0.5, None, False),
        (0.6, 0.5, 0.2, True),
        ("fp16", "fp16", None, True),
        ("bf16", "fp16", None, False),
        ([1, 2], [1, 2], None, True),
        ("a lot", 0.5, None, False),
        (("NaN", "as fp32"), ["NaN", "as fp32"], None, True),
        (["as fp32", "NaN"], ["NaN", "as fp32"], None, False),
        ("e4m3, no scale", ["e4m3, no scale"], None, True),
        (np.array(["e4m3"]), ["e4m3"], None, True),
        (3, ["e4m3"], None, False),
    ],
)
def test_guesses(session, guess, answer, tol, right):
    predict("how much?", guess, answer, tol)
    assert session.predictions == {"how much?": right}


def test_a_number_in_quotes_is_shown_as_such(session, capsys):
    predict("the largest", "448", 448)
    predict("which", "bf16", "fp16")
    assert session.predictions == {"the largest": False, "which": False}
    said, which = capsys.readouterr().out.splitlines()
    assert "you said '448', measured 448" in said
    assert "you said bf16, measured fp16" in which


def test_a_long_line_goes_on_below_its_text(session, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    check("a claim of some words that ends here", True, measured=[1.5, 2.5])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "holds    a claim of some words that ends"
    assert second == "         here  (measured 1.5, 2.5)"


def test_modes():
    with running(Session("quick")):
        assert quick()
        assert seeds(3) == [0]
    with running(Session("full")):
        assert not quick()
        assert seeds(3) == [0, 1, 2]
    with pytest.raises(ValueError, match="at least one"):
        seeds(0)


def test_numbers_are_short():
    assert shown(np.float64(1 / 3)) == "0.3333"
    assert shown(np.arange(9)) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
