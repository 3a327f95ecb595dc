"""A number format is a handful of integers; everything else about it is derived.

A floating-point value is ``(-1)^s * 2^(e - bias) * 1.m`` with `exp_bits` bits for the exponent
and `man_bits` bits for the fraction; where the exponent field is zero the leading one is gone
and the values are the *subnormals*, evenly spaced down to zero.  Formats differ in one more way
that matters: which of their codes are not numbers.  The name "e4m3" alone says nothing about
that: the field has at least three formats of that name, with largest values 240, 448 and 480.
So every `repr` here prints the largest value.

An integer format is the limiting case: no exponent bits, so *every* value is on the one evenly
spaced grid that a float keeps for its subnormals.  One set of rounding kernels serves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from functools import cached_property

IEEE_BIAS = -(10**6)
"""Stands for "the usual bias of this exponent width", 2^(exp_bits-1) - 1."""


class Specials(StrEnum):
    """Which codes are not finite numbers."""

    IEEE = "ieee"
    """The top exponent is reserved: infinities, and NaNs with every non-zero fraction."""
    FN = "fn"
    """No infinity; only the all-ones code is NaN, once per sign (OCP E4M3, E8M0)."""
    FNUZ = "fnuz"
    """No infinity and no negative zero: the code of -0 is the one NaN."""
    FINITE = "finite"
    """Every code is a finite number (OCP E2M1, E2M3, E3M2; integers)."""


@dataclass(frozen=True)
class Format:
    """A number format: what a value can be.

    NaN, infinity and -0 exist as `specials` says (`has_nan`, `has_inf`, `has_negative_zero`);
    what happens to a value beyond `max` is chosen by the caller (see `precsim.quantize`).

    `bias` defaults to the IEEE 754 rule ``2^(exp_bits-1) - 1``.  With ``exp_bits=0`` the format
    is an integer grid in two's complement codes, used symmetrically (int8: -127..127), and its
    step is ``2^(1 - bias - man_bits)``.  `subnormals=False` flushes what would be subnormal to
    zero (after rounding); without a zero there are none, whatever was said.  Raises `ValueError`
    for field widths that no carrier can hold.
    """

    name: str
    exp_bits: int
    man_bits: int
    specials: Specials = Specials.IEEE
    bias: int = IEEE_BIAS
    signed: bool = True
    subnormals: bool = True
    has_zero: bool = True
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        widest = 52 if self.exp_bits == 11 else 50  # the kernels need two spare bits below
        if not 0 <= self.exp_bits <= 11 or not 0 <= self.man_bits <= widest:
            msg = (
                f"format {self.name!r}: expected 0 to 11 exponent bits and 0 to {widest} fraction "
                f"bits, what a float64 can carry; got {self.exp_bits} and {self.man_bits}"
            )
            raise ValueError(msg)
        if self.bias == IEEE_BIAS:
            object.__setattr__(self, "bias", 2 ** max(self.exp_bits - 1, 0) - 1)
        object.__setattr__(self, "specials", Specials(self.specials))
        object.__setattr__(self, "subnormals", bool(self.subnormals and self.has_zero))
        for broken, rule in self._rules():
            if broken:
                msg = f"format {self.name!r}: {rule}; got {self.exp_bits} exponent and "
                msg += f"{self.man_bits} fraction bits, bias {self.bias}, {self.specials.value}"
                raise ValueError(msg)

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """What the fields must obey together: (whether it is broken, how the rule reads)."""
        ieee, fnuz = self.specials is Specials.IEEE, self.specials is Specials.FNUZ
        too_narrow = self.exp_bits < 2 or self.man_bits < 1
        # The kernels reach 53 - man_bits binades above emax, and need the quantum to be normal.
        inside = self.emax + 53 - self.man_bits < 1024 and self.emin - self.man_bits >= -1022
        like_fp64 = ieee and self.exp_bits == 11 and self.bias == 1023 and self.has_zero
        return (
            (self._only_zero(), "at least one of its values must not be zero"),
            (self.is_integer and self.has_nan, "an integer format has no special codes"),
            (ieee and too_narrow, "inf and NaN need 2 exponent bits and 1 fraction bit or more"),
            (fnuz and not self.signed, "FNUZ's NaN is the code of -0, so it needs a sign"),
            (not self.has_zero and self.signed, "only an unsigned format can do without a zero"),
            (not self.has_zero and not self.has_nan, "without a zero or a NaN, NaN has no home"),
            (not inside and not like_fp64, "its values must lie well inside float64's range"),
        )

    def _only_zero(self) -> bool:
        """Whether no code is left for anything but zero and NaN."""
        return self.man_bits == 0 if self.is_integer else self.emax < self.emin

    @property
    def is_integer(self) -> bool:
        """Whether all values are evenly spaced (no exponent field)."""
        return self.exp_bits == 0

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return int(self.signed) + self.exp_bits + self.man_bits

    @property
    def precision(self) -> int:
        """Significand bits p, the hidden one included (integers have none)."""
        return self.man_bits + (not self.is_integer)

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal value; below it the spacing no longer shrinks."""
        return (1 if self.has_zero else 0) - self.bias

    @property
    def emax(self) -> int:
        """Exponent of the largest finite value."""
        if self.is_integer:
            return self.emin - 1
        top = 2**self.exp_bits - 1
        if self.specials is Specials.IEEE or (self.specials is Specials.FN and self.man_bits == 0):
            top -= 1
        return int(top) - self.bias

    @property
    def quantum(self) -> float:
        """Spacing of the subnormals (of all values, for an integer): 2^(emin - man_bits)."""
        return 2.0 ** (self.emin - self.man_bits)

    @property
    def max(self) -> float:
        """Largest finite value."""
        if self.is_integer:
            return float(2**self.man_bits - 1) * self.quantum
        lost = 2 if self.specials is Specials.FN and self.man_bits > 0 else 1
        return 2.0**self.emax * (2.0 - lost * 2.0**-self.man_bits)

    @property
    def min(self) -> float:
        """Most negative finite value (the smallest value, where there is no sign)."""
        if self.signed:
            return -self.max
        return 0.0 if self.has_zero else self.smallest_normal

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value with all `precision` bits (an integer's step is all it has)."""
        return self.quantum if self.is_integer else 2.0**self.emin

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value at all; the smallest normal where subnormals are flushed."""
        return self.quantum if self.subnormals and self.has_zero else self.smallest_normal

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger value (2^-man_bits)."""
        return 2.0**-self.man_bits

    @cached_property
    def u(self) -> float:
        """Unit roundoff: the largest relative error of round-to-nearest, half of `eps`.

        For an integer format it is relative to the largest value, not to each value.
        """
        return self.eps / 2

    @property
    def has_inf(self) -> bool:
        """Whether an infinity can be stored."""
        return self.specials is Specials.IEEE

    @property
    def has_nan(self) -> bool:
        """Whether a NaN can be stored."""
        return self.specials is not Specials.FINITE

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code of its own."""
        plain_sign = self.specials is not Specials.FNUZ and not self.is_integer
        return self.signed and self.has_zero and plain_sign

    def ulp(self, x: float) -> float:
        """Spacing of the format's values at x (0 and subnormals: the quantum; NaN and inf: NaN)."""
        if not math.isfinite(x):
            return math.nan
        if x == 0 or self.is_integer:
            return self.quantum
        exponent = floor_log2(Fraction(x))
        return 2.0 ** (min(max(exponent, self.emin), self.emax) - self.man_bits)

    def values(self) -> list[float]:
        """Every finite value, ascending, with 0 once (-0 is not listed).

        Raises `ValueError` for formats wider than 20 bits, which have too many to list.
        """
        if self.bits > 20:
            msg = f"{self.name} has about 2^{self.bits} values: expected at most 20 bits to list"
            raise ValueError(msg)
        binades, steps = range(self.emin, self.emax + 1), range(2**self.man_bits)
        positive = [2.0**e * (1 + k * self.eps) for e in binades for k in steps]
        if self.is_integer or (self.subnormals and self.has_zero):
            positive = [k * self.quantum for k in steps[1:]] + positive
        positive = [v for v in positive if v <= self.max]
        negative = [-v for v in reversed(positive)] if self.signed else []
        return negative + [0.0] * self.has_zero + positive

    def contains(self, other: Format) -> bool:
        """Whether every finite value of `other` is a value of this format too."""
        few = other.max / other.quantum <= 2.0**self.precision  # all are multiples of the quantum
        return (
            self.max >= other.max
            and self.min <= other.min
            and (few or self.precision >= other.precision)
            and self.quantum <= other.quantum
            and self.smallest_subnormal <= other.smallest_subnormal
        )

    def flushed(self) -> Format:
        """This format with subnormals flushed to zero, as hardware in FTZ mode has it."""
        return replace(self, name=f"{self.name}_ftz", subnormals=False)

    def __hash__(self) -> int:
        return hash(self.name)  # equal formats have equal names, and this is looked up per op

    def __repr__(self) -> str:
        special = {
            Specials.IEEE: "inf, NaN",
            Specials.FN: "NaN, no inf",
            Specials.FNUZ: "one NaN, no inf, no -0",
            Specials.FINITE: "no inf, no NaN",
        }[self.specials]
        if self.is_integer:
            return f"{self.name} (step {self.quantum:g}, max {self.max:g}, {special})"
        low = f"min normal 2^{self.emin}"
        if self.smallest_subnormal < self.smallest_normal:
            low += f", min subnormal 2^{self.emin - self.man_bits}"
        return f"{self.name} (max {self.max:g}, {low}, {special})"


def floor_log2(x: Fraction) -> int:
    """Return floor(log2(abs(x))) exactly, from bit lengths; log2 in floats rounds up near 2^k."""
    magnitude = abs(x)
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return e if magnitude >= Fraction(2) ** e else e - 1
