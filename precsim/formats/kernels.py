"""Rounding whole arrays onto a format's grid, in place and in cache-sized blocks.

The carrier's own adder does the rounding.  Add ``c = 1.5 * 2^k`` to x, with k chosen so that the
spacing of carrier values around c is the spacing of the format around x; the sum is rounded to
nearest, ties to even, by the processor; subtract c again and what is left is x on the grid.  The
spacing around x follows from its exponent field (masked out of the bits, never from log2, which
rounds up just below a power of two), bounded below by `emin`: that bound *is* gradual underflow.
No step depends on the data, so a tensor that underflows costs what any other costs.

Where c would overflow the carrier (bf16 in float32: both have 8 exponent bits) the same rounding is
an integer addition on the bits.  What neither can do in float32 goes through float64, which is
exact because the float32 values are a subset.

All other rounding modes follow from truncation and the remainder, which is exact in the carrier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from precsim.formats.arrays import Array, array_module
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Mode, Overflow, Rounding, stochastic
from precsim.formats.stochastic import goes_up

BLOCK_BYTES = 1 << 17
"""Bytes of a block: with its scratch space it stays in the second-level cache."""

ONE_PASS: dict[str, Callable[[Array, Array, Format, Mode, Overflow, Array | None], None]] = {}
"""What rounds the arrays of a module, by its name, in one pass; a backend registers it."""


def round_into(
    x: Array,
    out: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None = None,
) -> None:
    """Round contiguous x into contiguous `out` (which may be x) block by block.

    The rules are `quantize`'s; this is the seam that the engine calls with everything resolved.
    Raises `ValueError` where x's dtype cannot carry the format.
    """
    plan = _plan(x.dtype, fmt)
    if plan.holds_carrier and overflow is Overflow.IEEE:
        if out is not x:
            out[...] = x
        return
    if one_pass := ONE_PASS.get(array_module(x).__name__):
        one_pass(x, out, fmt, rounding, overflow, words)
        return
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    flat_words = None if words is None else words.reshape(-1)
    with np.errstate(all="ignore"):  # overflow is the subject here, not an accident
        for start in range(0, flat_x.size, plan.block):
            part = slice(start, start + plan.block)
            block_words = None if flat_words is None else flat_words[part]
            plan.kernel(flat_x[part], flat_out[part], plan, rounding, overflow, block_words)


@dataclass(frozen=True, slots=True)
class Plan:
    """How values of one carrier get into one format: the kernel, and its constants in that dtype."""

    fmt: Format
    kernel: Callable[[Array, Array, Plan, Mode, Overflow, Array | None], None]
    block: int
    holds_carrier: bool  # every carrier value is a value of the format
    uint: Any
    exponent_mask: Any
    magnitude_mask: Any
    shift: Any  # fraction bits that the carrier has and the format has not
    keep_mask: Any  # all bits but those
    lowest: Any  # 2^emin
    highest: Any  # 2^emax
    magic: Any
    eps: Any
    largest: Any
    beyond: Any  # what overflow becomes: infinity, or NaN where there is none


@lru_cache(maxsize=1024)
def _plan(dtype: np.dtype[Any], fmt: Format) -> Plan:
    carrier, value = np.finfo(dtype), dtype.type
    uint = np.uint32 if dtype == np.float32 else np.uint64
    all_bits, magnitude = int(np.iinfo(uint).max), int(np.iinfo(uint).max) >> 1
    shift = carrier.nmant - fmt.man_bits
    kernel = _choose(dtype, fmt)
    with np.errstate(all="ignore"):
        return Plan(
            fmt=fmt,
            kernel=kernel,
            block=BLOCK_BYTES // dtype.itemsize,
            holds_carrier=shift == 0 and kernel is _round_by_bits and fmt.subnormals,
            uint=uint,
            exponent_mask=uint(magnitude >> carrier.nmant << carrier.nmant),
            magnitude_mask=uint(magnitude),
            shift=uint(shift),
            keep_mask=uint(all_bits >> shift << shift),
            lowest=value(2.0**fmt.emin),
            highest=value(2.0 ** max(fmt.emin, fmt.emax)),
            magic=value(1.5 * 2.0**shift),
            eps=value(fmt.eps),
            largest=value(fmt.max),
            beyond=value("inf" if fmt.has_inf else "nan"),
        )


def _choose(dtype: np.dtype[Any], fmt: Format) -> Callable[..., None]:
    """Pick the cheapest exact way to round carrier values of `dtype` to `fmt`."""
    carrier = np.finfo(dtype)
    shift = carrier.nmant - fmt.man_bits
    tiny = int(carrier.minexp)  # exponent of the smallest normal carrier value
    if fmt.max > float(carrier.max) or fmt.emin - fmt.man_bits < tiny - carrier.nmant or shift < 0:
        msg = f"{dtype} cannot carry {fmt.name}: expected float64 input"
        raise ValueError(msg)
    if shift > 0 and fmt.man_bits == 23 and fmt.emin == -126 and fmt.emax == 127 and fmt.has_inf:
        return _round_by_converting
    same_exponents = fmt.emin == tiny and fmt.emax == carrier.maxexp - 1
    if same_exponents and fmt.specials is Specials.IEEE:
        return _round_by_bits
    magic_fits = fmt.emax + shift + 1 < carrier.maxexp
    if shift >= 2 and magic_fits and fmt.emin - fmt.man_bits >= tiny:
        return _round_by_adding
    return _round_in_float64


def _round_by_adding(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round through the carrier's adder (module docstring): formats of a smaller exponent range."""
    xp = array_module(x)
    binade = xp.empty_like(x)  # 2^exponent of each value, within the exponents of the format
    xp.bitwise_and(x.view(plan.uint), plan.exponent_mask, out=binade.view(plan.uint))
    # NumPy's maximum of an array and a scalar takes several times as long as its clip.
    xp.clip(binade, plan.lowest, plan.highest, out=binade)
    if rounding is Rounding.NEAREST:
        binade *= plan.magic
        rounded = xp.add(x, binade)
        rounded -= binade
    else:
        magnitude = xp.abs(x)
        step = binade * plan.eps
        binade *= plan.magic
        rounded = magnitude + binade
        rounded -= binade
        xp.copyto(rounded, rounded - step, where=rounded > magnitude)
        _climb(magnitude, rounded, step, x, rounding, words)
    _finish(x, rounded, out, plan, rounding, overflow)


def _round_by_converting(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round float64 to fp32 by the processor's own conversion, which rounds to nearest even."""
    if rounding is Rounding.NEAREST:
        _finish(x, x.astype(np.float32).astype(np.float64), out, plan, rounding, overflow)
    else:
        _round_by_adding(x, out, plan, rounding, overflow, words)


def _round_by_bits(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round by integer arithmetic on the bits: formats with all the exponents of the carrier.

    A carry out of the fraction moves the exponent up by one, which is the right answer everywhere,
    from the largest subnormal (to the smallest normal) to `max` (to infinity).
    """
    xp = array_module(x)
    bits = x.view(plan.uint) & plan.magnitude_mask
    rounded = bits.view(x.dtype)
    if rounding is not Rounding.NEAREST:
        magnitude = rounded.copy()
        step = xp.maximum((bits & plan.exponent_mask).view(x.dtype), plan.lowest)
        step *= plan.eps
        bits &= plan.keep_mask
        _climb(magnitude, rounded, step, x, rounding, words)
    elif plan.shift:
        odd = bits >> plan.shift
        odd &= plan.uint(1)
        odd += plan.uint((1 << int(plan.shift) - 1) - 1)
        bits += odd
        bits &= plan.keep_mask
    nan = xp.isnan(x)
    if nan.any():  # a carry out of a NaN's fraction would make it a number
        xp.copyto(rounded, x, where=nan)
    _finish(x, rounded, out, plan, rounding, overflow)


def _round_in_float64(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round a float32 block in float64, of which its values and the format's are a subset."""
    wide = x.astype(np.float64)
    plan = _plan(wide.dtype, plan.fmt)
    plan.kernel(wide, wide, plan, rounding, overflow, words)
    out[...] = wide


def _climb(
    magnitude: Array,
    lower: Array,
    step: Array,
    signed: Array,
    rounding: Mode,
    words: Array | None,
) -> None:
    """Move `lower`, the truncated magnitude, up one step wherever the rounding mode says so."""
    if rounding is not Rounding.TOWARD_ZERO:
        up = climbs(magnitude, lower, step, signed, rounding, words)
        array_module(lower).copyto(lower, lower + step, where=up)  # CuPy's ufuncs take no where


def climbs(
    magnitude: Array,
    lower: Any,
    step: Any,
    signed: Array,
    rounding: Mode,
    words: Array | None,
) -> Array:
    """Return where a rounding mode takes the magnitude of `signed` from `lower` up one step.

    The remainder, in steps, is exact (or underflows, far below half a step, where a step is large).
    Infinities and NaN have a NaN remainder and stay put.  (The kernels have a faster way to the
    nearest value; who asks for it here is the accounting.)
    """
    xp = array_module(magnitude)
    rest = (magnitude - lower) / step
    if rounding is Rounding.NEAREST_AWAY:
        return rest >= 0.5  # type: ignore[no-any-return]
    if rounding is Rounding.UP:
        return (magnitude > lower) & (signed > 0)  # type: ignore[no-any-return]
    if rounding is Rounding.DOWN:
        return (magnitude > lower) & (signed < 0)  # type: ignore[no-any-return]
    if rounding is Rounding.TOWARD_ZERO:
        return xp.zeros_like(magnitude, dtype=bool)  # type: ignore[no-any-return]
    if variant := stochastic(rounding):
        assert words is not None
        return goes_up(variant, rest, words)
    half = lower / step * 0.5
    even = xp.floor(half) == half
    if rounding is Rounding.TO_ODD:
        return (magnitude > lower) & even  # type: ignore[no-any-return]
    return (rest > 0.5) | ((rest == 0.5) & ~even)  # type: ignore[no-any-return]


def _finish(
    x: Array, rounded: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow
) -> None:
    """Apply the format's edges to `rounded` (flushing, overflow, specials, sign) and store it.

    Two reductions, whose comparisons a NaN fails too, tell whether any value is beyond the edge.
    """
    xp = array_module(x)
    fmt = plan.fmt
    if not fmt.subnormals and fmt.has_zero:
        xp.copyto(rounded, 0, where=xp.abs(rounded) < fmt.smallest_normal)
    homeless = None  # NaN where the format has none
    if not (rounded.max() <= plan.largest and rounded.min() >= -plan.largest):
        _treat_overflow(x, rounded, plan, rounding, overflow)
        homeless = None if fmt.has_nan else xp.isnan(rounded)
    if fmt.signed:
        xp.copysign(rounded, x, out=out)
        if not fmt.has_negative_zero:
            out += 0  # -0 + 0 is +0
    else:
        negative = x < 0
        xp.maximum(rounded, x.dtype.type(fmt.min), out=out)  # a scale has no zero
        xp.copyto(out, x.dtype.type("nan" if fmt.has_nan else 0), where=negative)
    if homeless is not None:
        xp.copyto(out, 0, where=homeless)


def _treat_overflow(
    x: Array, rounded: Array, plan: Plan, rounding: Mode, overflow: Overflow
) -> None:
    """Replace what is beyond the largest value by that, an infinity or NaN."""
    xp = array_module(x)
    saturate = overflow is Overflow.SATURATE
    beyond = xp.abs(rounded) > plan.largest
    xp.copyto(rounded, plan.largest if saturate else plan.beyond, where=beyond)
    if not saturate:
        xp.copyto(rounded, plan.largest, where=beyond & _stops_at_max(x, rounding))


def _stops_at_max(x: Array, rounding: Mode) -> Array:
    """Return where a directed mode rounds a finite overflow back to the largest finite value."""
    xp = array_module(x)
    if rounding in (Rounding.TOWARD_ZERO, Rounding.TO_ODD):
        inward = xp.ones_like(x, dtype=bool)
    elif rounding is Rounding.UP:
        inward = x < 0
    elif rounding is Rounding.DOWN:
        inward = x > 0
    else:
        inward = xp.zeros_like(x, dtype=bool)
    return xp.isfinite(x) & inward  # type: ignore[no-any-return]
