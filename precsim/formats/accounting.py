"""Exception accounting: what rounding an array did to its elements, counted as fast as it rounds.

`quantize_counted` gives what `quantize` gives and, beside it, how many elements were inexact,
flushed, tied, overflowed ...; `precsim.formats.exact.flags` is the specification of every count,
one number at a time.

All counts but two are read off a number and its result.  Overflow under saturation, and tininess
after rounding, depend on what would have been decided, or drawn, so that just beyond `max`, and
just below the smallest normal value, the decision is made again.  No step takes longer for numbers
that underflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.arrays import Array, array_module, as_float
from precsim.formats.format import Format
from precsim.formats.kernels import climbs, round_into
from precsim.formats.modes import Mode, Overflow, Rounding, stochastic
from precsim.formats.quantize import quantize, random_words, resolve_modes
from precsim.formats.registry import AnyFormat, format
from precsim.formats.scratch import BLOCK_BYTES

ONE_PASS: dict[str, Callable[[Array, Array, Format, Mode, Array | None], dict[str, int]]] = {}
"""What counts the arrays of a module, by its name, in one pass; a backend registers it."""


@dataclass(frozen=True)
class Counts:
    """How many of n elements met what; counts of several arrays add up with ``+``.

    A number is a finite element or an infinity; a NaN that stays one is in no count but n.

    inexact: finite, and the result is not the same number (IEEE 754's inexact; overflow, and NaN
    for a negative number in a format without a sign, included).
    flushed: a number other than zero became zero.
    subnormal: the result is a subnormal, exact or not.
    tie: finite and halfway between two neighbours (max and the virtual next value are neighbours,
    and so are subnormals that will be flushed; the smallest value of a format without a zero has
    none below), whatever the rounding mode makes of it.
    overflow: finite, and rounded as if there were no largest value it would lie beyond `max`
    (IEEE 754's overflow).  464 in e4m3 is none, for it rounds to 448.
    saturated: overflow or an infinity that became the largest value.
    nan_created, nan_lost: a number became NaN; a NaN became a number (formats without NaN).
    tiny_before: a finite number other than zero below the smallest normal value.
    tiny_after: the same after rounding as if the exponent had no lower end; the two ways in which
    IEEE 754 (7.5) lets hardware detect underflow.  Integers have no exponent, and no tiny numbers.
    """

    n: int = 0
    inexact: int = 0
    flushed: int = 0
    subnormal: int = 0
    tie: int = 0
    overflow: int = 0
    saturated: int = 0
    nan_created: int = 0
    nan_lost: int = 0
    tiny_before: int = 0
    tiny_after: int = 0

    def __add__(self, other: Counts) -> Counts:
        names = [f.name for f in fields(self)]
        return Counts(*(getattr(self, name) + getattr(other, name) for name in names))

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name, as JSON holds them."""
        return asdict(self)


def quantize_counted(
    x: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Array | np.random.Generator | int | None = None,
) -> tuple[Array, Counts]:
    """Return what `quantize` returns, and the `Counts` of what it did.

    NaN, infinities, -0 and overflow, shapes and dtypes, and errors are `quantize`'s; an empty array
    counts nothing.  Raises `ValueError` for a scaled format, too: count its elements, x / scale.
    """
    grid, values = format(fmt), as_float(x)
    if not isinstance(grid, Format):
        msg = f"{grid.name} shares scales: expected its element format, and x / scale"
        raise ValueError(msg)  # noqa: TRY004 (a format of the wrong sort, not type)
    mode, _ = resolve_modes(grid, rounding, overflow)
    words = random_words(values, random) if stochastic(mode) else None
    rounded = quantize(values, grid, mode, overflow, words)
    return rounded, tally(values, array_module(values).asarray(rounded), grid, mode, words)


def tally(
    x: Array, rounded: Array, fmt: Format, rounding: Mode, words: Array | None = None
) -> Counts:
    """Count what made `rounded` of x: arrays of one shape and dtype, the mode, its random words."""
    xp = array_module(x)
    before, after = (xp.ascontiguousarray(a).reshape(-1) for a in (x, rounded))
    flat_words = None if words is None else words.reshape(-1)
    if one_pass := ONE_PASS.get(xp.__name__):
        return Counts(before.size, **one_pass(before, after, fmt, rounding, flat_words))
    # A subnormal does not spell its exponent out.
    wide = x.dtype if fmt.emin >= np.finfo(x.dtype).minexp else np.dtype(np.float64)
    block = BLOCK_BYTES // wide.itemsize
    found = _Tally(fmt, rounding, xp, wide, min(block, before.size))
    with np.errstate(all="ignore"):
        for start in range(0, before.size, block):
            part = slice(start, start + block)
            block_words = None if flat_words is None else flat_words[part]
            x, rounded = (a[part].astype(wide, copy=False) for a in (before, after))
            found.add(x, rounded, block_words)
    return Counts(**found.counts)


class _Tally:
    """Running counts, and what a block needs: the format's edges as numbers, and scratch space.

    (Making new large arrays costs more than all that is done with them here.)
    """

    def __init__(
        self, fmt: Format, rounding: Mode, xp: Any, dtype: np.dtype[Any], size: int
    ) -> None:
        value = dtype.type
        self.counts = dict.fromkeys((f.name for f in fields(Counts)), 0)
        self.fmt, self.rounding, self.xp = fmt, rounding, xp
        self.scratch = [xp.empty(size, dtype) for _ in range(3)]
        self.below, self.largest = value(fmt.smallest_normal), value(fmt.max)
        self.top_step, self.eps = value(fmt.ulp(fmt.max)), value(fmt.eps)
        self.ends = value(2.0**fmt.emin), value(2.0**fmt.emax)
        self.flushes = not fmt.subnormals and fmt.has_zero
        self.uint: Any = np.uint32 if value is np.float32 else np.uint64
        self.exponent_mask = ~self.uint((1 << int(np.finfo(dtype).nmant)) - 1)
        # Spacing and last value below the smallest normal one, had the exponent no lower end; they
        # are 0 and the smallest normal itself where the carrier has nothing between the two.
        fine = 2.0 ** (fmt.emin - 1 - fmt.man_bits)
        self.fine_step, self.fine_below = value(fine), value(fmt.smallest_normal - fine)

    def _count(self, name: str, where: Array, sign: int = 1) -> None:
        self.counts[name] += sign * int(self.xp.count_nonzero(where))

    def add(self, x: Array, rounded: Array, words: Array | None) -> None:
        """Count one block."""
        xp, fmt = self.xp, self.fmt
        magnitude, size, step = (a[: x.size] for a in self.scratch)
        self.counts["n"] += x.size
        xp.abs(x, out=magnitude)
        highest = float(magnitude.max())
        if not np.isfinite(highest) or (not fmt.signed and x.min() < 0):
            x, rounded = self._set_aside(x, rounded)
            xp.abs(x, out=magnitude)
            highest = float(magnitude.max())
        xp.abs(rounded, out=size)
        zero, zero_after = magnitude == 0, size == 0
        self._count("inexact", x != rounded)
        if fmt.has_zero:
            self._count("flushed", zero_after)
            self._count("flushed", zero, -1)
        self._count("subnormal", size < self.below)
        self._count("subnormal", zero_after, -1)
        if not fmt.is_integer:
            self._count_tiny(x, magnitude, zero, words)
        if highest > fmt.max:
            self._count_top(x, size, magnitude, words)
        self._count_ties(magnitude, size, step, beyond=highest > fmt.max)

    def _set_aside(self, x: Array, rounded: Array) -> tuple[Array, Array]:
        """Count what has no neighbours (NaN, infinities, and negative numbers in a format without
        a sign), and return the arrays with a value of the format in its place.
        """
        xp, fmt = self.xp, self.fmt
        nan, infinite, lost = xp.isnan(x), xp.isinf(x), xp.isnan(rounded)
        away = nan | infinite if fmt.signed else nan | infinite | (x < 0)
        numbers = away & ~nan
        self._count("inexact", numbers & ~infinite & (x != rounded))
        self._count("flushed", numbers & (x != 0) & (rounded == 0))
        self._count("saturated", infinite & (xp.abs(rounded) == self.largest))
        self._count("nan_created", numbers & lost)
        self._count("nan_lost", nan & ~lost)
        value = x.dtype.type(0 if fmt.has_zero else fmt.min)
        return xp.where(away, value, x), xp.where(away, value, rounded)

    def _count_tiny(self, x: Array, magnitude: Array, zero: Array, words: Array | None) -> None:
        """Count what is tiny before, and what still is after rounding to a finer spacing."""
        small = magnitude < self.below
        for name in ("tiny_before", "tiny_after"):
            self._count(name, small)
            self._count(name, zero, -1)
        near = small & (magnitude > self.fine_below)
        if near.any():
            up = climbs(magnitude, self.fine_below, self.fine_step, x, self.rounding, words)
            self._count("tiny_after", near & up, -1)

    def _count_top(self, x: Array, size: Array, magnitude: Array, words: Array | None) -> None:
        """Count what overflows: all beyond the virtual next value, and what goes up to it."""
        up = climbs(magnitude, self.largest, self.top_step, x, self.rounding, words)
        up &= magnitude > self.largest
        up |= magnitude - self.largest >= self.top_step
        self._count("overflow", up)
        self._count("saturated", up & (size == self.largest))
        self._count("nan_created", self.xp.isnan(size))

    def _count_ties(self, magnitude: Array, size: Array, step: Array, *, beyond: bool) -> None:
        """Count what lies half a step from a neighbour; a result is one, unless it overflowed.

        Overwrites `size`, the results' magnitude, and `step`.  The distance from the nearest
        neighbour (without a zero, the nearest of all is not always a result) and from the lower one
        is exact, from any other it may have a bit too many.
        """
        xp, fmt = self.xp, self.fmt
        self._spacing(magnitude, out=step)
        if self.flushes:  # a flushed result is no neighbour
            full = replace(fmt, name=f"{fmt.name} with subnormals", subnormals=True)
            round_into(magnitude, size, full, Rounding.TOWARD_ZERO, Overflow.SATURATE)
        elif self.rounding is not Rounding.NEAREST or not fmt.has_zero:
            xp.copyto(size, size - step, where=size > magnitude)
        xp.subtract(magnitude, size, out=size)
        xp.abs(size, out=size)
        size += size
        ties = size == step
        if beyond:
            # As float64, in which the middle is exact; float32 may have no room for its last bit.
            middle = np.float64(fmt.max + fmt.ulp(fmt.max) / 2)
            ties &= magnitude <= self.largest
            ties |= magnitude == middle
        if not fmt.has_zero:  # below the smallest value there is no other
            ties &= magnitude >= fmt.smallest_normal
        self._count("tie", ties)

    def _spacing(self, magnitude: Array, out: Array) -> None:
        """Write the spacing of the format at each magnitude, up to `max`."""
        if self.fmt.is_integer:
            out[...] = self.top_step
            return
        bits: Any = magnitude.view(self.uint)
        self.xp.bitwise_and(bits, self.exponent_mask, out=out.view(self.uint))
        self.xp.clip(out, *self.ends, out=out)
        out *= self.eps
