"""Rounding whole arrays onto a format's grid, in place and in cache-sized blocks.

x is divided by the spacing of the format around it, the quotient is rounded to a whole number, and
that is multiplied by the spacing again.  The spacing is a power of two, so neither division nor
multiplication rounds anything, and what is left is what processors do in one instruction for whole
numbers: nearest with ties to even, truncation, floor, ceiling; the sign of zero survives them all.
The spacing follows from the exponent field (masked out of the bits, never from log2, which rounds
up just below a power of two), bounded below by `emin`: that bound *is* gradual underflow.  Its
reciprocal follows from its bits by one subtraction.  No step depends on the data, so a tensor that
underflows costs what any other costs.

Where a spacing has no reciprocal in the carrier (bf16 in float32: both have 8 exponent bits)
rounding is an integer addition on the bits.  What neither can do in float32 goes through float64,
which is exact because the float32 values are a subset.  `nearest.py` and `drawn.py` have shorter
ways to do the same in the modes that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from precsim.formats import drawn, nearest
from precsim.formats.arrays import Array, array_module
from precsim.formats.edges import finish
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Mode, Overflow, Rounding, Stochastic, Variant, stochastic
from precsim.formats.nearest import Short
from precsim.formats.scratch import BLOCK_BYTES, SLOT_BYTES, scratch
from precsim.formats.stochastic import goes_up
from precsim.formats.watch import Watch

ONE_PASS: dict[str, Callable[[Array, Array, Format, Mode, Overflow, Array | None], bool]] = {}
"""What rounds the arrays of a module, by its name, in one pass, or says that it has not; a backend
registers it."""

_MINDFUL = (Rounding.UP, Rounding.DOWN, Rounding.TO_ODD, Stochastic(Variant.EQUAL))
"""Modes that may move a value up however close to its lower neighbour it lies."""


_ONE_INSTRUCTION = (Rounding.NEAREST, Rounding.TOWARD_ZERO, Rounding.UP, Rounding.DOWN)
"""Modes in which processors round signed numbers to whole ones."""


def round_into(
    x: Array,
    out: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None = None,
    watch: Watch | None = None,
) -> None:
    """Round contiguous x into contiguous `out` (which may be x) block by block.

    The rules are `quantize`'s, with everything resolved.  `watch` is shown each block of NumPy's
    arrays; a device's it rounds itself.  Raises `ValueError` where x's dtype cannot carry the format.
    """
    with np.errstate(all="ignore"):  # overflow is the subject here, not an accident
        round_quietly(x, out, fmt, rounding, overflow, words, watch)


def round_quietly(
    x: Array,
    out: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None = None,
    watch: Watch | None = None,
) -> None:
    """Do what `round_into` does where NumPy has been told not to warn: the seam that the engine calls."""
    plan, xp = plan_for(x.dtype, fmt), array_module(x)
    on_host = xp is np
    if plan.holds_carrier and overflow is Overflow.IEEE and (on_host or watch is None):
        if out is not x:
            out[...] = x
        if watch is not None:
            _show(x.reshape(-1), plan.block, watch)
        return
    one_pass = ONE_PASS.get(xp.__name__) if watch is None else watch.in_one_pass
    if one_pass is not None and one_pass(x, out, fmt, rounding, overflow, words):
        return
    apart = watch is None or out is not x
    short = plan.shorter.get(rounding) if on_host else None
    most = SLOT_BYTES if words is None and short and watch is None else BLOCK_BYTES
    block = most // x.itemsize if on_host else max(x.size, 1)
    saturate = overflow is Overflow.SATURATE
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    flat_words = None if words is None else words.reshape(-1)
    for start in range(0, flat_x.size, block):
        part = slice(start, start + block)
        here, there = (flat_x, flat_out) if x.size <= block else (flat_x[part], flat_out[part])
        these = None if flat_words is None else flat_words[part]
        rounded = there if apart else scratch("after", here)
        if short is None or not short(here, rounded, these, saturate):
            plan.kernel(here, rounded, plan, rounding, overflow, these)
        if watch is not None:
            watch(here, rounded)
        if not apart:
            there[...] = rounded


def _show(x: Array, block: int, watch: Watch) -> None:
    """Show what rounding does not change."""
    for start in range(0, x.size, block):
        part = x[start : start + block]
        watch(part, part)


@dataclass(frozen=True, slots=True)
class Plan:
    """How values of one carrier get into one format: the kernel, and its constants in that dtype."""

    fmt: Format
    kernel: Callable[[Array, Array, Plan, Mode, Overflow, Array | None], None]
    shorter: Mapping[Mode, Short]  # what is quicker where it does what the kernel does
    block: int
    holds_carrier: bool  # every carrier value is a value of the format
    uint: Any
    exponent_mask: Any
    magnitude_mask: Any
    sign: Any
    one: Any  # a 1 in the bits' type
    shift: Any  # fraction bits that the carrier has and the format has not
    keep_mask: Any  # all bits but those
    top: Any  # the bits of 2^emax
    mirror: Any  # the bits of 2^k, taken from this, are those of 2^-k
    lowest: Any  # 2^emin
    highest: Any  # 2^emax
    eps: Any
    below_half: Any  # the largest number less than 1/2
    largest: Any
    flush_below: Any  # results smaller than this are zeros
    plain: bool  # `is_plain`
    quiet: Any  # place of the bit that makes a NaN of an infinity


@lru_cache(maxsize=1024)
def plan_for(dtype: np.dtype[Any], fmt: Format) -> Plan:
    """Return the plan; raises `ValueError` where the dtype cannot carry the format."""
    carrier, value = np.finfo(dtype), dtype.type
    uint: Any = np.uint32 if dtype == np.float32 else np.uint64
    all_bits, magnitude = int(np.iinfo(uint).max), int(np.iinfo(uint).max) >> 1
    shift = carrier.nmant - fmt.man_bits
    kernel = _choose(dtype, fmt)
    with np.errstate(all="ignore"):
        highest = value(2.0 ** max(fmt.emin, fmt.emax))
        return Plan(
            fmt=fmt,
            kernel=kernel,
            shorter=_shorter(dtype, fmt, kernel),
            block=BLOCK_BYTES // dtype.itemsize,
            holds_carrier=shift == 0 and kernel is round_by_bits and fmt.subnormals and fmt.signed,
            uint=uint,
            exponent_mask=uint(magnitude >> carrier.nmant << carrier.nmant),
            magnitude_mask=uint(magnitude),
            sign=uint(magnitude + 1),
            one=uint(1),
            shift=uint(shift),
            keep_mask=uint(all_bits >> shift << shift),
            top=value(2.0**fmt.emax).view(uint),
            mirror=uint(2 * carrier.maxexp - 2 << carrier.nmant),
            lowest=value(2.0**fmt.emin),
            highest=highest,
            eps=value(fmt.eps),
            below_half=np.nextafter(value(0.5), value(0)),
            largest=value(fmt.max),
            flush_below=value(fmt.smallest_normal if not fmt.subnormals and fmt.has_zero else 0),
            plain=is_plain(fmt),
            quiet=uint(carrier.nmant - 1),
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
        return round_by_converting
    same_exponents = fmt.emin == tiny and fmt.emax == carrier.maxexp - 1
    if same_exponents and fmt.specials is Specials.IEEE:
        return round_by_bits
    largest_step = max(fmt.emin, fmt.emax) - fmt.man_bits
    if tiny <= fmt.emin - fmt.man_bits and largest_step <= -tiny:  # steps and reciprocals, normal
        return round_in_steps
    return round_in_float64


def _shorter(
    dtype: np.dtype[Any], fmt: Format, kernel: Callable[..., None]
) -> Mapping[Mode, Short]:
    found: dict[Mode, Short | None] = {}
    if kernel in (round_in_steps, round_by_bits):
        make = nearest.by_steps if kernel is round_in_steps else nearest.by_bits
        found[Rounding.NEAREST] = make(dtype, fmt, truncates=False)
        found[Rounding.TOWARD_ZERO] = make(dtype, fmt, truncates=True)
    if kernel is round_in_steps:
        found[Rounding.STOCHASTIC] = drawn.by_steps(dtype, fmt)
    return {mode: short for mode, short in found.items() if short is not None}


def round_in_steps(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round multiples of the spacing to whole numbers (module docstring)."""
    xp, uint = array_module(x), plan.uint
    step, multiple = scratch("step", x), scratch("multiple", x)
    bits, field = multiple.view(uint), step.view(uint)
    xp.bitwise_and(x.view(uint), plan.exponent_mask, out=field)
    high = bool(field.max() >= plan.top)
    if step.size < 8192 and not high:  # NumPy's clip is slow to call, its maximum slow to run
        xp.maximum(step, plan.lowest, out=step)
    else:
        xp.clip(step, plan.lowest, plan.highest, out=step)
    step *= plan.eps
    unsigned = rounding not in _ONE_INSTRUCTION
    if unsigned:  # with the sign in the step, the multiple is a magnitude
        xp.bitwise_and(x.view(uint), plan.sign, out=bits)
        field |= bits
    xp.subtract(plan.mirror, field, out=bits)
    multiple *= x
    if rounding in _MINDFUL and plan.fmt.quantum > 1:  # a multiple may be too small for the carrier
        lost = (multiple == 0) & (x != 0)
        xp.copyto(multiple, 0.25 if unsigned else xp.copysign(0.25, x), where=lost)
    _round_to_whole(multiple, plan, rounding, words)
    if high or not plan.plain:
        multiple *= step
        finish(x, multiple, out, plan, rounding, overflow, high=high)
    else:
        xp.multiply(multiple, step, out=out)


def is_plain(fmt: Format) -> bool:
    """Whether a rounded value that is not too large needs nothing else to be in the format."""
    return fmt.has_negative_zero and (fmt.subnormals or not fmt.has_zero)


def _round_to_whole(z: Array, plan: Plan, rounding: Mode, words: Array | None) -> None:
    """Round to whole numbers, in place."""
    xp = array_module(z)
    if rounding is Rounding.NEAREST:
        xp.rint(z, out=z)
    elif rounding is Rounding.TOWARD_ZERO:
        xp.trunc(z, out=z)
    elif rounding is Rounding.UP:
        xp.ceil(z, out=z)
    elif rounding is Rounding.DOWN:
        xp.floor(z, out=z)
    elif rounding is Rounding.NEAREST_AWAY:
        z += plan.below_half  # adding 1/2 itself would lift the number before 1/2 to 1
        xp.floor(z, out=z)
    elif rounding is Rounding.TO_ODD:
        inexact = xp.trunc(z) != z
        xp.copyto(z, 2 * xp.floor(z / 2) + 1, where=inexact)
    else:
        variant = stochastic(rounding)
        assert variant is not None
        assert words is not None
        rest = scratch("rest", z)
        xp.floor(z, out=rest)
        z -= rest
        up = goes_up(variant, z, words)
        z[...] = up
        z += rest


def round_by_converting(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round float64 to fp32 by the processor's own conversion, which rounds to nearest even."""
    if rounding is not Rounding.NEAREST:
        round_in_steps(x, out, plan, rounding, overflow, words)
        return
    narrow = scratch("narrow", x, np.float32)
    narrow[...] = x
    if overflow is Overflow.IEEE and is_plain(plan.fmt):
        out[...] = narrow
    else:
        rounded = scratch("multiple", x)
        rounded[...] = narrow
        finish(x, rounded, out, plan, rounding, overflow)


def round_by_bits(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round by integer arithmetic on the bits: formats with all the exponents of the carrier.

    A carry out of the fraction moves the exponent up by one, which is the right answer everywhere,
    from the largest subnormal (to the smallest normal) to `max` (to infinity).
    """
    xp, shift = array_module(x), int(plan.shift)
    source, rounded = x.view(plan.uint), scratch("multiple", x)
    bits = rounded.view(plan.uint)
    nan = bool(xp.isnan(x.max()))
    # The carry makes infinities of itself, and truncation none.
    stops = overflow is Overflow.SATURATE or rounding in _MINDFUL
    if shift == 0 or rounding is Rounding.TOWARD_ZERO:
        xp.bitwise_and(source, plan.keep_mask, out=bits)
    elif rounding is Rounding.NEAREST:
        xp.right_shift(source, plan.shift, out=bits)
        bits &= plan.one
        bits += plan.uint((1 << shift - 1) - 1)
        bits += source
        if plan.plain and not stops and not nan:
            xp.bitwise_and(bits, plan.keep_mask, out=out.view(plan.uint))
            return
        bits &= plan.keep_mask
    elif rounding is Rounding.STOCHASTIC and shift <= 32:
        # The first `shift` bits of the word are less than the bits to be dropped iff these carry
        # when the complement of those is added.
        assert words is not None
        noise = scratch("noise", words)
        xp.invert(words, out=noise)
        noise >>= np.uint32(32 - shift)
        xp.add(source, noise, out=bits)
        bits &= plan.keep_mask
    elif x.dtype == np.float32:
        round_in_float64(x, out, plan, rounding, overflow, words)
        return
    else:
        _climb(x, rounded, plan, rounding, words)
    if nan:  # a carry out of a NaN's fraction would make it a number
        xp.copyto(rounded, x + x, where=xp.isnan(x))  # the sum is a quiet one
    if stops or not plan.plain:
        finish(x, rounded, out, plan, rounding, overflow, high=stops)
    else:
        out[...] = rounded


def round_in_float64(
    x: Array, out: Array, plan: Plan, rounding: Mode, overflow: Overflow, words: Array | None
) -> None:
    """Round a float32 block in float64, of which its values and the format's are a subset."""
    half = max(plan.block // 2, 1) if array_module(x) is np else max(x.size, 1)
    plan = plan_for(np.dtype(np.float64), plan.fmt)
    for start in range(0, x.size, half):
        part = slice(start, start + half)
        wide = scratch("wide", x[part], np.float64)
        wide[...] = x[part]
        block_words = None if words is None else words[part]
        plan.kernel(wide, wide, plan, rounding, overflow, block_words)
        out[part] = wide


def _climb(signed: Array, rounded: Array, plan: Plan, rounding: Mode, words: Array | None) -> None:
    """Truncate the bits, then move up one step wherever the rounding mode says so."""
    xp = array_module(signed)
    magnitude = xp.abs(signed)
    bits = magnitude.view(plan.uint)
    step = xp.clip((bits & plan.exponent_mask).view(signed.dtype), plan.lowest, plan.highest)
    step *= plan.eps
    lower = (bits & plan.keep_mask).view(signed.dtype)
    step *= climbs(magnitude, lower, step, signed, rounding, words)
    xp.copysign(lower + step, signed, out=rounded)


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
