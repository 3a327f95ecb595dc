"""The two choices that a format leaves open: how to round, and what to do beyond the largest value.

The rules below are stated once, here; `exact.py` executes them on fractions, `kernels.py` and
`stochastic.py` on arrays, and the tests hold the two together.

Rounding happens as if the exponent range went on above `max` (the *virtual next value*: 480 after
e4m3's 448, 65536 after fp16's 65504); only then is overflow looked at.  So 464, the midpoint,
goes to 448 in e4m3 (448 has the even significand) while 65520 goes to infinity in fp16.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction


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
    The last neighbour pair is (max, virtual next value), the first (0, smallest subnormal).
    The same as ``Stochastic()``; hardware's variants, with few random bits, are `Stochastic`'s."""


class Variant(Choice):
    """How a draw decides; d is the distance from the lower neighbour in units of the gap."""

    EXACT = "exact"
    """Up with probability d."""
    A = "a"
    """Up with probability floor(d 2^n) / 2^n: low bits of d are dropped, a bias toward zero."""
    B = "b"
    """Up with probability floor(d 2^n + 1/2) / 2^n: d rounded to n bits, halves up."""
    C = "c"
    """Up with probability RNE(d 2^n) / 2^n: d rounded to n bits, halves to even."""
    EQUAL = "equal"
    """Up with probability 1/2, wherever between its neighbours the value lies."""


@dataclass(frozen=True)
class Stochastic:
    """Stochastic rounding with every choice named: the variant, and its number of random bits n.

    Values of the format, infinities and NaN never move, whatever is drawn.  All else is decided on
    magnitudes, between the neighbours below and above.  The first pair is (0, smallest subnormal),
    so what lies below half of that may come up too; from the largest subnormal the way up is the
    smallest normal; the last pair is (max, virtual next value), and only when that is drawn is
    overflow looked at.

    A draw is a number u in [0, 1); its first n bits are an integer t, and the value goes up iff
    ``t < share * 2^n``, for "exact" iff ``u < share``.  To the array kernels a 32-bit word w means
    u = (w + 1/2) / 2^32, so their "exact" goes up with the probability d rounded to 32 bits, halves
    down: within 2^-33 of d, and d itself where d has no more bits (every float32 has at most 23 in
    a format's normal range); a value with d <= 2^-33 stays down.

    "a", "b" and "c" are P3109's StochasticA, B and C, gfloat 0.5's StochasticFastest, StochasticFast
    and Stochastic; their random integer, of which large values go up, is ``2^n - 1 - t`` here, so
    that one draw means the same to every variant.  "equal" is rounding mode 6 of chop (Higham and
    Pranesh 2019).

    Written "stochastic", "stochastic_a8", "stochastic_b3", "stochastic_c16", "stochastic_equal".
    Raises `ValueError` for a, b, c without bits in 1..32, and for the others with any.
    """

    variant: Variant = Variant.EXACT
    bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", Variant(self.variant))
        if self.variant in (Variant.EXACT, Variant.EQUAL):
            if self.bits is not None:
                msg = f"variant {self.variant!s} has no number of bits to choose; got {self.bits}"
                raise ValueError(msg)
        elif self.bits not in range(1, 33):
            msg = f"variant {self.variant!s}: expected 1 to 32 random bits; got {self.bits}"
            raise ValueError(msg)

    @property
    def cells(self) -> int:
        """How many values the random integer t has: 2^n, for "equal" 2 (for "exact", no matter)."""
        return 1 << (self.bits or 1)

    def share(self, rest: Fraction) -> Fraction:
        """Return the probability of going up for a distance 0 <= rest < 1, exactly."""
        cells = self.cells
        match self.variant:
            case Variant.EXACT:
                return rest
            case Variant.A:
                return Fraction(math.floor(rest * cells), cells)
            case Variant.B:
                return Fraction(math.floor(rest * cells + Fraction(1, 2)), cells)
            case Variant.C:
                return Fraction(round(rest * cells), cells)  # a fraction rounds half to even
            case Variant.EQUAL:
                return Fraction(rest > 0, 2)

    def goes_up(self, rest: Fraction, draw: float | Fraction) -> bool:
        """Whether a draw in [0, 1) takes a magnitude at this distance up."""
        if self.variant is Variant.EXACT:
            return draw < rest
        return math.floor(Fraction(draw) * self.cells) < self.share(rest) * self.cells

    def __str__(self) -> str:
        if self.variant is Variant.EXACT:
            return "stochastic"
        return f"stochastic_{self.variant}{self.bits or ''}"


Mode = Rounding | Stochastic
"""A rounding mode with nothing left to say; plain stochastic rounding is `Rounding.STOCHASTIC`."""

SPELLINGS = f"{', '.join(Rounding)}, stochastic_equal, stochastic_a<n>, _b<n>, _c<n> (n bits)"
"""All that `rounding_mode` reads, for messages."""

_WRITTEN = re.compile(r"stochastic_(?:([abc])([1-9][0-9]?)|(equal))")


def rounding_mode(spec: str | Mode) -> Mode:
    """Return the rounding mode that a name stands for; a mode passes through.

    Raises `ValueError`, with the list of all modes, for anything else.
    """
    if isinstance(spec, Rounding):
        return spec
    if isinstance(spec, Stochastic):
        return Rounding.STOCHASTIC if spec.variant is Variant.EXACT else spec
    if not is_rounding(spec):
        msg = f"unknown rounding {spec!r}: expected one of {SPELLINGS}"
        raise ValueError(msg)
    if match := _WRITTEN.fullmatch(spec):
        lettered, bits, equal = match.groups()
        return Stochastic(Variant(lettered or equal), int(bits) if bits else None)
    return Rounding(spec)


def is_rounding(word: str) -> bool:
    """Whether a word names a rounding mode, as one does within a longer spelling."""
    return word in set(Rounding) or _WRITTEN.fullmatch(word) is not None


def stochastic(mode: Mode) -> Stochastic | None:
    """Return the variant of a mode that draws random numbers, None for one that does not."""
    if isinstance(mode, Stochastic):
        return mode
    return Stochastic() if mode is Rounding.STOCHASTIC else None


class Overflow(Choice):
    """What becomes of a rounded value beyond `max`, and of an infinite input.

    Formats without NaN (fp4, fp6, integers) saturate whatever is asked for, since they have no
    code for anything else, and turn NaN into +0, as WebAssembly's trunc_sat and Arm's FCVT do.
    """

    IEEE = "ieee"
    """Infinity where the format has one, else NaN (OCP's non-saturating mode)."""
    SATURATE = "saturate"
    """The largest finite value with the same sign, for infinities too (OCP's saturating mode)."""
