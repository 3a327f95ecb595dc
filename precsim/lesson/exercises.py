"""Exercises: the reader's function against a slow specification, on inputs that Hypothesis finds.

A stub raises `NotImplementedError`, which is no error: it says that nobody has tried yet.  Anything
else is compared with the specification, and what is printed is the smallest input for which the two
differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from precsim.lesson.session import Exercise, current, say, shown

UNTOUCHED, RIGHT, WRONG = "untouched", "right", "wrong"

TRIED = 200
"""Inputs that Hypothesis makes."""

MISSING = (
    "exercises need Hypothesis, which looks for inputs that break an answer: "
    "pip install 'precsim[lessons]'"
)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Verdict:
    """What became of an answer; of a wrong one, the smallest failing input and what it gave."""

    state: str
    says: str


class _Different(Exception):
    """The answer differs from the specification for one input."""


class _Untouched(Exception):
    """The stub is as it was."""


def exercise(
    *,
    spec: Callable[..., Any],
    strategy: Any = None,
    examples: Iterable[Any] = (),
    tol: float = 1e-9,
) -> Callable[[F], F]:
    """Compare the decorated function with `spec` and print how it does; return it as it is.

    A stub that raises `NotImplementedError` is "not attempted".  `strategy` is a Hypothesis strategy
    or, so that a lesson need not import Hypothesis, a function of `hypothesis.strategies`:
    ``strategy=lambda st: st.integers(0, 60)``.  `examples` are tried first, and without it alone.
    A tuple, of either, is the arguments of one call.  Numbers are equal within `tol`, relative;
    NaN equals NaN.  Where Hypothesis is missing one sentence says so, and examples are still tried.

    Raises `ValueError` where there is nothing to try.
    """
    given = list(examples)
    if strategy is None and not given:
        msg = "exercise: expected a strategy, examples, or both; got neither"
        raise ValueError(msg)

    def judge(answer: Callable[..., Any]) -> Verdict:
        return _judge(answer, spec, strategy, given, tol)

    def decorate(stub: F) -> F:
        verdict = judge(stub)
        current().exercises.append(Exercise(stub.__name__, verdict.state, judge))
        style = {UNTOUCHED: "dim", RIGHT: "green"}.get(verdict.state, "yellow")
        joint = "" if verdict.says.startswith("(") else ": "  # a call: name(arguments) should give
        say("exercise ", f"{stub.__name__}{joint}{verdict.says}", style)
        return stub

    return decorate


def _judge(
    answer: Callable[..., Any],
    spec: Callable[..., Any],
    strategy: Any,
    given: list[Any],
    tol: float,
) -> Verdict:
    try:
        for example in given:
            _compare(answer, spec, example, tol)
        note = _search(answer, spec, strategy, tol) if strategy is not None else ""
    except _Untouched:
        return Verdict(UNTOUCHED, "not attempted yet (replace its `raise`)")
    except _Different as different:
        return Verdict(WRONG, str(different))
    if note and not given:
        return Verdict(UNTOUCHED, note)
    return Verdict(RIGHT, f"right, as far as {note or 'anybody can find'}")


def _search(answer: Callable[..., Any], spec: Callable[..., Any], strategy: Any, tol: float) -> str:
    """Let Hypothesis look for an input where the two differ; return what kept it from that."""
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError:
        return f"the examples go; {MISSING}"
    if not isinstance(strategy, strategies.SearchStrategy):
        strategy = strategy(strategies)

    @hypothesis.settings(
        max_examples=TRIED, deadline=None, database=None, derandomize=True,
        report_multiple_bugs=False, suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def agree(example: Any) -> None:
        _compare(answer, spec, example, tol)

    try:
        agree()
    except hypothesis.errors.Flaky:
        msg = "gives different results for the same input"
        raise _Different(msg) from None
    return ""


def _compare(
    answer: Callable[..., Any], spec: Callable[..., Any], example: Any, tol: float
) -> None:
    arguments = example if isinstance(example, tuple) else (example,)
    wanted = spec(*arguments)
    call = ", ".join(shown(a) if isinstance(a, float) else repr(a) for a in arguments)
    try:
        got = answer(*arguments)
    except NotImplementedError:
        raise _Untouched from None
    except Exception as error:
        msg = f"({call}) should give {shown(wanted)}; it raised {type(error).__name__}: {error}"
        raise _Different(msg) from error
    if not _same(got, wanted, tol):
        msg = f"({call}) should give {shown(wanted)}; it gave {shown(got)}"
        raise _Different(msg)


def _same(got: Any, wanted: Any, tol: float) -> bool:
    """Return whether two results are equal: numbers within `tol`, in any nesting."""
    if isinstance(wanted, np.ndarray | np.generic):
        wanted = wanted.tolist()
    if isinstance(got, np.ndarray | np.generic):
        got = got.tolist()
    if isinstance(wanted, list | tuple):
        same_kind = isinstance(got, list | tuple) and len(got) == len(wanted)
        return same_kind and all(_pairs(got, wanted, tol))
    if isinstance(wanted, int | float) and isinstance(got, int | float):
        both_nan = math.isnan(wanted) and math.isnan(got)
        return both_nan or math.isclose(got, wanted, rel_tol=tol)
    return bool(got == wanted)


def _pairs(got: Iterable[Any], wanted: Iterable[Any], tol: float) -> Iterator[bool]:
    return (_same(a, b, tol) for a, b in zip(got, wanted, strict=True))
