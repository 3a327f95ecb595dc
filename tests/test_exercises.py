"""Three states of an exercise: untouched, right, wrong with the smallest input that shows it."""

import sys

import pytest
from hypothesis import strategies as st

from precsim.lesson import exercise
from precsim.lesson.exercises import RIGHT, UNTOUCHED, WRONG
from precsim.lesson.session import Session, running


def state(answer, **posed):
    with running(Session()) as session:
        exercise(**posed)(answer)
    (found,) = session.exercises
    return found.state


def untouched(x):
    raise NotImplementedError


INTEGERS = {"spec": abs, "strategy": st.integers(-50, 50)}


def test_states(capsys):
    assert state(untouched, **INTEGERS) == UNTOUCHED
    assert "not attempted" in capsys.readouterr().out
    assert state(lambda x: x if x > 0 else -x, **INTEGERS) == RIGHT
    assert state(lambda x: x, **INTEGERS) == WRONG
    assert "(-1) should give 1; it gave -1" in capsys.readouterr().out
    assert state(lambda x: 1 / x, spec=float, examples=[0]) == WRONG
    assert "raised ZeroDivisionError" in capsys.readouterr().out


def test_examples_come_first_and_tuples_are_arguments():
    assert state(lambda a, b: a + b, spec=lambda a, b: b + a, examples=[(1, 2)]) == RIGHT
    assert state(lambda x: x, spec=lambda x: x + (x == 10**6), examples=[10**6]) == WRONG


def test_a_strategy_may_be_a_function_of_strategies():
    assert state(abs, spec=abs, strategy=lambda s: s.integers()) == RIGHT


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        (0.1 + 0.2, 0.3, True),
        (float("nan"), float("nan"), True),
        (1.0, float("nan"), False),
        ([1, 2.0], (1, 2), True),
        ([1], [1, 2], False),
        ("a", "a", True),
        (None, 0, False),
    ],
)
def test_equality(got, wanted, same):
    assert state(lambda _: got, spec=lambda _: wanted, examples=[0]) == (RIGHT if same else WRONG)


def test_nothing_to_try():
    with pytest.raises(ValueError, match="expected a strategy, examples, or both"):
        exercise(spec=abs)


def test_without_hypothesis_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert state(abs, **INTEGERS) == UNTOUCHED
    assert "precsim[lessons]" in capsys.readouterr().out
    assert state(abs, **INTEGERS, examples=[-3]) == RIGHT
