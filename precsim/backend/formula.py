"""Elementwise arithmetic that is written once, and run as every kind of array is best served.

A function of numbers, called once with symbols, leaves a list of steps.  NumPy takes one step after
the other, each in memory that is there already.  A device, and Numba where it rounds, go through the
arrays once and take all steps at each element.  Every step is one operation of IEEE 754, so the bits
are the same.

    @formula
    def _scaled(x, scale, weight):
        return x * scale * weight
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from precsim.backend import compiled, cupy
from precsim.formats.arrays import Array, array_module
from precsim.formats.scratch import scratch

OPERATIONS: dict[str, Any] = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}
"""What a formula may do."""

LARGE = 1 << 12
"""Elements from which on a formula of one step may be quicker than a call of NumPy's."""

Term = int | float
"""What a step works on: the number of an operand, or of an earlier result; or a constant, a float."""


class Step(NamedTuple):
    """One operation."""

    sign: str
    left: Term
    right: Term


class Symbol:
    """Stands for a number in a formula; what is done to it is written down."""

    def __init__(self, number: int, steps: list[Step], operands: int) -> None:
        self.number, self.steps, self.operands = number, steps, operands

    def _step(self, sign: str, left: Symbol | float, right: Symbol | float) -> Symbol:
        terms = [t.number if isinstance(t, Symbol) else float(t) for t in (left, right)]
        self.steps.append(Step(sign, *terms))
        return Symbol(self.operands + len(self.steps) - 1, self.steps, self.operands)

    def __add__(self, other: Symbol | float) -> Symbol:
        return self._step("+", self, other)

    def __radd__(self, other: float) -> Symbol:
        return self._step("+", other, self)

    def __sub__(self, other: Symbol | float) -> Symbol:
        return self._step("-", self, other)

    def __rsub__(self, other: float) -> Symbol:
        return self._step("-", other, self)

    def __mul__(self, other: Symbol | float) -> Symbol:
        return self._step("*", self, other)

    def __rmul__(self, other: float) -> Symbol:
        return self._step("*", other, self)

    def __truediv__(self, other: Symbol | float) -> Symbol:
        return self._step("/", self, other)

    def __rtruediv__(self, other: float) -> Symbol:
        return self._step("/", other, self)


class Formula:
    """A formula of arrays: ``f(x, y, out=z)`` writes it, element by element, to z, and returns z.

    The operands broadcast to z's shape and have its dtype; one of them may be z itself, none may
    overlap it otherwise.  Overflow, division by zero and NaN do what IEEE 754 says.
    Raises `ValueError` for a function that does not return what its last operation gives.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        count = function.__code__.co_argcount
        steps: list[Step] = []
        found = function(*(Symbol(number, steps, count) for number in range(count)))
        if not steps or getattr(found, "number", None) != count + len(steps) - 1:
            msg = f"formula {function.__name__}: expected it to return what its last step gives"
            raise ValueError(msg)
        self.steps = tuple(steps)
        terms = [t for t in steps[0][1:] if isinstance(t, int)]  # a constant is a float
        plain = len(steps) == 1 and count == 2 and terms == [0, 1]
        self.ufunc = OPERATIONS[steps[0].sign] if plain else None
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, *operands: Array, out: Array) -> Array:
        """Write the formula of the operands to `out`, and return that."""
        on_host = array_module(out) is np
        if self.ufunc is not None and on_host and out.size < LARGE:
            self.ufunc(*operands, out=out)
            return out
        evaluate = compiled.evaluate if on_host else cupy.evaluate
        if not evaluate(self.steps, operands, out):
            _by_ufuncs(self.steps, operands, out)
        return out


formula = Formula


def _by_ufuncs(steps: tuple[Step, ...], operands: Sequence[Array], out: Array) -> None:
    """Take one step after the other."""
    written = next((i for i, x in enumerate(operands) if x is out), None)
    places = places_of(steps, len(operands), written)
    rooms = [out, *(scratch(f"formula{n}", out) for n in range(1, max(places) + 1))]
    values: list[Any] = list(operands)
    for (sign, *terms), place in zip(steps, places, strict=True):
        left, right = (values[t] if isinstance(t, int) else t for t in terms)
        values.append(OPERATIONS[sign](left, right, out=rooms[place]))


@cache
def places_of(steps: tuple[Step, ...], operands: int, written: int | None) -> tuple[int, ...]:
    """Return where each step writes its result: 0 is the formula's, others hold what comes between.

    Each goes to the first place that holds nothing which is read later; `written` is the operand, if
    any, that lies where the result will.
    """
    last = {t: at for at, (_, *terms) in enumerate(steps) for t in terms if isinstance(t, int)}
    held = {} if written is None else {0: written}  # place: the number that lies there
    places = []
    for at in range(len(steps)):
        place = 0
        while place in held and last.get(held[place], at) > at:
            place += 1
        held[place] = operands + at
        places.append(place)
    return tuple(places)
