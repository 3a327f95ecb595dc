"""Rounding in one pass, compiled by Numba: the kernels of `precsim.formats.kernels` for one element.

A loop over elements that a compiler turns into vector instructions reads and writes memory once,
where NumPy goes over a block a dozen times.  There is one kernel, whatever the format: its numbers
are arguments (`Numbers`).  The rounding mode and two other things that a loop should not ask for
every element are constants of its closure, for each combination of which it is compiled once and
kept on the disk.

`precsim.backend.compiled` imports it when there is much to round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from precsim.backend import one_pass, threads
from precsim.backend.fused_bits import as_bits, as_float, copy, in_wide_vectors, inlined, like
from precsim.formats import kernels
from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow, Rounding

NEAREST, AWAY, TOWARD_ZERO, UP, DOWN, TO_ODD, EXACT, A, B, C, EQUAL = range(11)
"""Rounding modes by their number in `one_pass.Rule`."""
STEPS, BITS, WIDE = range(3)
"""How an element is rounded: in its own carrier, by integers, in float64."""
PLAIN, NO_NAN, WHOLE, ODD, CARRIED = range(5)
"""What a format lacks: nothing but range; a NaN; a NaN and -0, as integers do; anything else; not
even range, as a carry makes infinities of what overflows (`by_bits`)."""


_CARRY = NEAREST, AWAY, EXACT
"""Modes in which `by_bits` adds what takes the largest values to infinity, and leaves those there."""
WAITING = 1 << 11
"""Elements that wait to be written back where an array is rounded in place."""


class Numbers(NamedTuple):
    """A format, an overflow rule and a carrier; floats and unsigned integers are the carrier's."""

    magnitude: Any  # mask of all bits but the sign
    exponent: Any  # mask of the exponent field, and the bits of infinity
    mirror: Any
    low: Any  # the bits of 2^emin
    high: Any  # the bits of 2^emax
    fraction: Any  # man_bits in the place of an exponent
    below_half: Any
    half: Any
    one: Any
    quarter: Any
    largest: Any
    positive: Any  # what becomes of a finite overflow
    negative: Any
    infinite: Any  # and of an infinity
    flush_below: Any
    least: Any
    shift: Any
    keep: Any
    quiet: Any  # the bit that a quiet NaN has
    cells: Any  # 2^n, for stochastic rounding with n bits
    unused: Any  # bits of a word beyond those n
    signed: Any
    negative_zero: Any
    has_nan: Any


def numbers(dtype: np.dtype[Any], fmt: Format, rounding: Mode, overflow: Overflow) -> Array:
    """Return the numbers of a format in a carrier that can round it by steps or by bits.

    In an array, floats as their bits (`unpack` reads it): a tuple takes Numba longer to pass than a
    small array takes to round.
    """
    plan, rule = kernels.plan_for(dtype, fmt), one_pass.rule(fmt, rounding, overflow)
    value, nmant = dtype.type, np.finfo(dtype).nmant
    saturate = overflow is Overflow.SATURATE
    beyond = plan.largest if saturate else value("inf" if fmt.has_inf else "nan")
    inward = rounding in (Rounding.TOWARD_ZERO, Rounding.TO_ODD)
    found = Numbers(
        magnitude=plan.magnitude_mask,
        exponent=plan.exponent_mask,
        mirror=plan.mirror,
        low=plan.lowest.view(plan.uint),
        high=plan.highest.view(plan.uint),
        fraction=plan.uint(fmt.man_bits << nmant),
        below_half=plan.below_half,
        half=value(0.5),
        one=value(1),
        quarter=value(0.25),
        largest=plan.largest,
        positive=plan.largest if inward or rounding is Rounding.DOWN else beyond,
        negative=plan.largest if inward or rounding is Rounding.UP else beyond,
        infinite=beyond,
        flush_below=plan.flush_below,
        least=value(fmt.min if not fmt.signed else 0),
        shift=plan.shift,
        keep=plan.keep_mask,
        quiet=plan.uint(1 << int(plan.quiet)),
        cells=value(2.0**rule.bits),
        unused=plan.uint(32 - rule.bits),
        signed=plan.uint(fmt.signed),
        negative_zero=plan.uint(fmt.has_negative_zero),
        has_nan=plan.uint(fmt.has_nan),
    )
    return np.array([number.view(plan.uint) for number in found])


@inlined
def unpack(c: Any) -> Any:
    """Return the `Numbers` in an array."""
    return Numbers(
        c[0], c[1], c[2], c[3], c[4], c[5],
        as_float(c[6]), as_float(c[7]), as_float(c[8]), as_float(c[9]), as_float(c[10]),
        as_float(c[11]), as_float(c[12]), as_float(c[13]), as_float(c[14]), as_float(c[15]),
        c[16], c[17], c[18], np.float64(as_float(c[19])), np.uint32(c[20]),
        c[21] != 0, c[22] != 0, c[23] != 0,
    )  # fmt: skip


@cache
def _edition() -> str:
    """Return a name for what the compiled files of this folder say together."""
    files = sorted(Path(__file__).parent.glob("fused*.py"))
    return blake2b(b"".join(file.read_bytes() for file in files), digest_size=4).hexdigest()


def compiled(function: Any) -> Any:
    """Compile a loop when it is first called, and keep it on the disk if there is a place for it.

    Under a name that is new when any of the files is: Numba looks at the one that has the loop, and
    would go on with what it had compiled of the others.
    """
    function.__qualname__ += f"_{_edition()}"
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@inlined
def _goes_up(rest: Any, word: Any, c: Any, mode: Any) -> Any:
    """Whether a word takes a magnitude at this distance up (`precsim.formats.stochastic`)."""
    share, t = np.float64(rest), np.float64(np.uint32(word >> c.unused))
    if mode == EXACT:  # w + 1/2 < 2^32 rest; so many words are less, and no step rounds
        scaled = rest * like(2.0**32, rest)
        whole = np.floor(scaled)
        whole = whole + c.one if scaled - whole > c.half else whole
        up = like(word, as_bits(rest)) < like(whole, as_bits(rest))
    elif mode == A:
        up = t + 1.0 <= share * c.cells
    elif mode == B:
        up = t + 0.5 <= share * c.cells
    elif mode == C:
        up = t < np.rint(share * c.cells)
    else:
        up = (word < np.uint32(1 << 31)) & (share > 0.0)
    return up


@inlined
def _whole(z: Any, negative: Any, word: Any, c: Any, mode: Any) -> Any:
    """Round the magnitude z to a whole number."""
    q = np.floor(z)
    if mode == NEAREST:
        q = np.rint(z)
    elif mode == AWAY:
        q = np.floor(z + c.below_half)
    elif mode == UP:
        q = q if negative else np.ceil(z)
    elif mode == DOWN:
        q = np.ceil(z) if negative else q
    elif mode == TO_ODD:
        twice = np.floor(z * c.half)
        odd = twice + twice + c.one
        q = q if q == z else odd
    elif mode != TOWARD_ZERO:
        above = q + c.one
        q = above if _goes_up(z - q, word, c, mode) else q
    return q


@inlined
def _beyond(magnitude: Any, sign: Any, c: Any, mode: Any) -> Any:
    """Return what becomes of a magnitude whose result is too large; most modes need not ask which."""
    over = c.infinite
    if mode in (TOWARD_ZERO, UP, DOWN, TO_ODD):
        over = c.negative if sign != 0 else c.positive
        over = c.infinite if magnitude == c.exponent else over
    return over


@inlined
def by_steps(bits: Any, word: Any, c: Any, mode: Any, kind: Any) -> Any:
    """Round the multiple of the spacing to a whole number; the value is given and made as bits."""
    magnitude = like(bits & c.magnitude, bits)
    sign = bits ^ magnitude
    result = _on_grid(magnitude, sign, word, c, mode)
    over = _beyond(magnitude, sign, c, mode)
    result = over if result > c.largest else result
    return _with_sign(result, sign, magnitude, c, kind)


@inlined
def by_saturating_steps(magnitude: Any, sign: Any, word: Any, c: Any, mode: Any, kind: Any) -> Any:
    """Do as `by_steps` of a number whose sign is apart, where all that is too large saturates."""
    result = _on_grid(magnitude, sign, word, c, mode)
    result = min(result, c.largest)
    return _with_sign(result, sign, magnitude, c, kind)


@inlined
def _on_grid(magnitude: Any, sign: Any, word: Any, c: Any, mode: Any) -> Any:
    """Return the magnitude on the format's grid, as if that had no end."""
    field = like(magnitude & c.exponent, magnitude)
    field = max(field, c.low)
    field = min(field, c.high)
    field = like(field - c.fraction, magnitude)
    z = as_float(magnitude) * as_float(like(c.mirror - field, magnitude))
    if mode in (UP, DOWN, TO_ODD, EQUAL):  # even if too small for the carrier, it is not zero
        z = c.quarter if z == 0 and magnitude != 0 else z
    return _whole(z, sign != 0, word, c, mode) * as_float(field)


@inlined
def _with_sign(result: Any, sign: Any, magnitude: Any, c: Any, kind: Any) -> Any:
    """Return the bits of a rounded magnitude and its sign; what the format lacks is replaced."""
    if kind == NO_NAN:
        nan = np.isnan(result)
        result = like(0.0, result) if nan else result
        sign = like(0, sign) if nan else sign
    elif kind == WHOLE:
        result = like(0.0, result) if np.isnan(result) else result
        sign = like(0, sign) if result == 0 else sign
    elif kind == ODD:
        result = like(0.0, result) if result < c.flush_below else result
        nowhere = np.isnan(result) and not c.has_nan
        result = like(0.0, result) if nowhere else result
        zero = nowhere or (result == 0 and not c.negative_zero)
        below = not c.signed and sign != 0 and magnitude != 0 and magnitude <= c.exponent
        result = max(result, c.least)
        result = like(np.nan, result) if below and c.has_nan else result
        result = like(0.0, result) if below and not c.has_nan else result
        sign = like(0, sign) if zero or below else sign
    return like(as_bits(result) | sign, sign)


@inlined
def by_bits(bits: Any, word: Any, c: Any, mode: Any, kind: Any) -> Any:
    """Round by a carry out of the bits that the format has not; float32, and all its exponents."""
    magnitude = np.uint32(bits & c.magnitude)
    sign = np.uint32(bits ^ magnitude)
    last = np.uint32(np.uint32(magnitude >> c.shift) & np.uint32(1))
    half = np.uint32(np.uint32(1) << np.uint32(c.shift - np.uint32(1)))
    all_but_one = np.uint32(half + np.uint32(half - np.uint32(1)))
    added = np.uint32(0)
    if mode == NEAREST:
        added = np.uint32(np.uint32(half - np.uint32(1)) + last)
    elif mode == AWAY:
        added = half
    elif mode == UP:
        added = np.uint32(0) if sign != 0 else all_but_one
    elif mode == DOWN:
        added = all_but_one if sign != 0 else np.uint32(0)
    elif mode == TO_ODD:
        added = np.uint32(0) if last != 0 else all_but_one
    elif mode == EXACT:
        added = np.uint32(np.uint32(~word) >> np.uint32(np.uint32(32) - c.shift))
    rounded = np.uint32(np.uint32(magnitude + added) & c.keep)
    if kind == CARRIED:
        done = np.uint32(rounded | sign)
        return np.uint32(bits | c.quiet) if magnitude > c.exponent else done
    result = as_float(rounded)
    over = _beyond(magnitude, sign, c, mode)
    result = over if result > c.largest else result
    if kind == ODD:
        result = like(0.0, result) if result < c.flush_below else result
    done = np.uint32(as_bits(result) | sign)
    return np.uint32(bits | c.quiet) if magnitude > c.exponent else done


@inlined
def in_float64(bits: Any, word: Any, c: Any, mode: Any, kind: Any) -> Any:
    """Round a float32 in float64."""
    wide = as_bits(np.float64(as_float(bits)))
    return as_bits(np.float32(as_float(by_steps(wide, word, c, mode, kind))))


def round_into(
    x: Array, out: Array, fmt: Format, rounding: Mode, overflow: Overflow, words: Array | None
) -> bool:
    """Round contiguous x into contiguous `out` (which may be x, but not overlap it otherwise).

    False where there is no kernel for it: formats with all exponents of float64, those with all of
    float32's and no sign, and no bit to drop.
    """
    found = choose(x.dtype, fmt, rounding, overflow)
    if found is None:
        return False
    source = x.reshape(-1).view(found.uint)
    target = source if out is x else out.reshape(-1).view(found.uint)
    drawn = NO_WORDS if words is None else words.reshape(-1)
    if source.size < 2 * threads.PIECE:
        found.run(source, target, drawn, found.numbers)
    else:
        _run_in_pieces(found, source, target, drawn)
    return True


def _run_in_pieces(found: _Choice, source: Array, target: Array, drawn: Array) -> None:
    def run(start: int, stop: int) -> None:
        part = slice(start, stop)
        here = source[part]
        found.run(here, here if target is source else target[part], drawn[part], found.numbers)

    threads.in_pieces(run, source.size)


NO_WORDS = np.empty(0, np.uint32)


class _Choice(NamedTuple):
    """How to round to a format."""

    uint: Any  # type of the bits
    how: int
    mode: int
    kind: int
    run: Callable[..., None]
    numbers: Array


@lru_cache(maxsize=1024)
def choose(dtype: np.dtype[Any], fmt: Format, rounding: Mode, overflow: Overflow) -> _Choice | None:
    """Return how to round to a format; None where there is no kernel for it."""
    plan, mode = kernels.plan_for(dtype, fmt), one_pass.rule(fmt, rounding, overflow).mode
    carrier, how = dtype, STEPS
    if plan.kernel is kernels.round_by_bits:
        if dtype == np.float64 or plan.shift == 0 or not fmt.signed:
            return None
        how = BITS if mode <= EXACT else WIDE
    elif plan.kernel is kernels.round_in_float64:
        how = WIDE
    if how == WIDE:
        carrier = np.dtype(np.float64)
    kind = ODD
    if kernels.is_plain(fmt):
        kind = PLAIN if fmt.has_nan else NO_NAN
        if how == BITS and mode in _CARRY and overflow is Overflow.IEEE:  # these have infinities
            kind = CARRIED
    elif fmt.signed and fmt.subnormals and not (fmt.has_nan or fmt.has_negative_zero):
        kind = WHOLE
    c = numbers(carrier, fmt, rounding, overflow)
    return _Choice(plan.uint, how, mode, kind, kernel(how, mode, kind), c)


@cache
def kernel(how: int, mode: int, kind: int) -> Callable[..., None]:
    """Return ``run(source, target, words, numbers)``; the arrays are bits, flat.

    Source and target may be the same: then what is rounded waits beside them for a while, or the
    compiler would have to fear that writing one element changes the next.
    """
    drawn = mode >= EXACT

    @compiled
    def run(source: Any, target: Any, words: Any, packed: Any) -> None:
        in_wide_vectors()
        c, size = unpack(packed), target.size
        apart = source.ctypes.data != target.ctypes.data
        length = size if apart else WAITING
        waiting = np.empty(0 if apart else WAITING, target.dtype)
        for start in range(0, size, max(length, 1)):
            here = source[start : start + length]
            done = target[start : start + length] if apart else waiting[: here.size]
            draws = words[start : start + length]
            for i in range(here.size):
                word = draws[i] if drawn else np.uint32(0)
                if how == STEPS:
                    done[i] = by_steps(here[i], word, c, mode, kind)
                elif how == BITS:
                    done[i] = by_bits(here[i], word, c, mode, kind)
                else:
                    done[i] = in_float64(here[i], word, c, mode, kind)
            if not apart:
                copy(waiting, target, start, here.size)

    return run  # type: ignore[no-any-return]
