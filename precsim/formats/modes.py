"""The two choices that a format leaves open: how to round, and what to do beyond the largest value.

The rules below are stated once, here; `exact.py` executes them on fractions, `kernels.py` on
arrays, and the tests hold the two together.

Rounding happens as if the exponent range went on above `max` (the *virtual next value*: 480 after
e4m3's 448, 65536 after fp16's 65504); only then is overflow looked at.  So 464, the midpoint,
goes to 448 in e4m3 (448 has the even significand) while 65520 goes to infinity in fp16.
"""

from __future__ import annotations

from enum import StrEnum


class Choice(StrEnum):
    """Names that a user types: a wrong one raises `ValueError` with the list of right ones."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        kind = cls.__name__.lower()
        msg = f"unknown {kind} {value!r}: expected one of {', '.join(cls)}"
        raise ValueError(msg)


class Rounding(Choice):
    """How a value between two neighbours of the format is resolved.

    All modes keep the sign of a value that rounds to zero (-0 where the format has it), leave
    every value of the format where it is, and pass NaN through.
    """

    NEAREST = "nearest"
    """To the nearer neighbour; a tie to the one whose last significand bit is 0 (IEEE 754)."""
    NEAREST_AWAY = "nearest_away"
    """To the nearer neighbour; a tie away from zero."""
    TOWARD_ZERO = "toward_zero"
    """To the neighbour of smaller magnitude (truncation). Finite values never overflow."""
    UP = "up"
    """Toward +infinity: -max is the worst that a finite negative value becomes."""
    DOWN = "down"
    """Toward -infinity."""
    TO_ODD = "to_odd"
    """An inexact value takes the neighbour whose last significand bit is 1 (a sticky bit).
    Finite values never overflow (SoftFloat 3, CPFloat): they stop at `max`."""
    STOCHASTIC = "stochastic"
    """Up in magnitude with probability (x - lower) / (upper - lower); an exact value never moves.
    The last neighbour pair is (max, virtual next value), the first (0, smallest subnormal)."""


class Overflow(Choice):
    """What becomes of a rounded value beyond `max`, and of an infinite input.

    Formats without NaN (fp4, fp6, integers) saturate whatever is asked for, since they have no
    code for anything else, and turn NaN into +0, as WebAssembly's trunc_sat and Arm's FCVT do.
    """

    IEEE = "ieee"
    """Infinity where the format has one, else NaN (OCP's non-saturating mode)."""
    SATURATE = "saturate"
    """The largest finite value with the same sign, for infinities too (OCP's saturating mode)."""
