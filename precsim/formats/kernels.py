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

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.format import Format, Specials
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.registry import AnyFormat, format
from precsim.formats.scaled import Scaled

Array = npt.NDArray[Any]

BLOCK_BYTES = 1 << 17
"""Bytes of a block: with its scratch space it stays in the second-level cache."""


def quantize(
    x: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Rounding = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Array | np.random.Generator | int | None = None,
    out: Array | None = None,
) -> Array:
    """Round every element of x to a value of the format; the result keeps x's float dtype.

    NaN stays NaN (formats without NaN: +0); infinities and values that round beyond `max` follow
    `overflow` (None: "ieee" where the format has an infinity or a NaN, else "saturate"); -0 stays
    -0 where the format has it; a value that rounds to zero keeps its sign.

    x: any shape; float32 and float64 are rounded in place of a copy (`out` may be x itself, and
    is made where it is None); anything else real becomes float64; a scalar gives a scalar.
    `random` serves "stochastic": uint32 words of x's shape (word w stands for the fraction
    (w + 1/2) / 2^32, and x goes up iff that is less than its distance from the lower neighbour,
    in units of the gap), or a NumPy Generator or an integer seed to draw them from.

    Raises `ValueError` for an unknown format, rounding or overflow, for a format that x's dtype
    cannot carry (fp64 in float32), and for stochastic rounding without `random`.
    """
    fmt = format(fmt)
    mode, beyond = _modes(fmt, rounding, overflow)
    x = as_float(x)
    xp = array_module(x)
    source = xp.asarray(x, order="C")
    target = xp.empty_like(source) if out is None else out
    if target.shape != x.shape or target.dtype != x.dtype or not target.flags.c_contiguous:
        msg = (
            f"out must be C-contiguous {x.dtype} of shape {x.shape}; "
            f"got {target.dtype} of shape {target.shape}"
        )
        raise ValueError(msg)
    words = _random_words(x, random) if mode is Rounding.STOCHASTIC else None
    if isinstance(fmt, Scaled):
        scale = scale_of(source, fmt)
        with np.errstate(all="ignore"):
            xp.divide(source, scale, out=target)
            round_into(target, target, fmt.element, mode, Overflow.SATURATE, words)
            xp.multiply(target, scale, out=target)
    else:
        round_into(source, target, fmt, mode, beyond, words)
    return target if target.ndim or out is not None else target[()]


def scale_of(x: Array, fmt: Scaled) -> Array:
    """Return the scale of each group of x, broadcastable against x: amax / max, as a float32 value.

    A group of zeros has scale 1; a group with a NaN or an infinity has scale NaN.
    """
    xp = array_module(x)
    if x.size == 0:
        return xp.ones((1,) * x.ndim, x.dtype)  # type: ignore[no-any-return]
    amax = xp.max(xp.abs(x), axis=fmt.axis if x.ndim > 1 else None, keepdims=True)
    with np.errstate(all="ignore"):
        scale = (amax / fmt.element.max).astype(np.float32)
        scale = xp.where(amax == 0, np.float32(1), xp.maximum(scale, np.float32(2.0**-149)))
        finite = xp.isfinite(scale)
        return xp.where(finite, scale, np.float32("nan")).astype(x.dtype)  # type: ignore[no-any-return]


def round_into(
    x: Array,
    out: Array,
    fmt: Format,
    rounding: Rounding,
    overflow: Overflow,
    words: Array | None = None,
) -> None:
    """Round contiguous x into contiguous `out` (which may be x) block by block.

    The rules are `quantize`'s; this is the seam that the engine calls with everything resolved.
    """
    kernel = _choose(x.dtype, fmt)
    block = BLOCK_BYTES // x.itemsize
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    flat_words = None if words is None else words.reshape(-1)
    with np.errstate(all="ignore"):  # overflow is the subject here, not an accident
        for start in range(0, flat_x.size, block):
            part = slice(start, start + block)
            block_words = None if flat_words is None else flat_words[part]
            kernel(flat_x[part], flat_out[part], fmt, rounding, overflow, block_words)


def array_module(x: Any) -> Any:
    """Return the module whose array x is: numpy, or cupy if (and only if) x is a CuPy array."""
    return sys.modules[type(x).__module__.partition(".")[0]]


Kernel = Callable[[Array, Array, Format, Rounding, Overflow, Array | None], None]


def _choose(dtype: np.dtype[Any], fmt: Format) -> Kernel:
    """Pick the cheapest exact way to round carrier values of `dtype` to `fmt`."""
    carrier = np.finfo(dtype)
    shift = carrier.nmant - fmt.man_bits
    tiny = int(carrier.minexp)  # exponent of the smallest normal carrier value
    if fmt.max > float(carrier.max) or fmt.emin - fmt.man_bits < tiny - carrier.nmant or shift < 0:
        msg = f"{dtype} cannot carry {fmt.name}: expected float64 input"
        raise ValueError(msg)
    same_exponents = fmt.emin == tiny and fmt.emax == carrier.maxexp - 1
    if same_exponents and fmt.specials is Specials.IEEE:
        return _round_by_bits
    magic_fits = fmt.emax + shift + 1 < carrier.maxexp
    if shift >= 2 and magic_fits and fmt.emin - fmt.man_bits >= tiny:
        return _round_by_adding
    return _round_in_float64


def _round_by_adding(
    x: Array, out: Array, fmt: Format, rounding: Rounding, overflow: Overflow, words: Array | None
) -> None:
    """Round through the carrier's adder (module docstring): formats of a smaller exponent range."""
    xp = array_module(x)
    carrier = np.finfo(x.dtype)
    binade = xp.empty_like(x)  # 2^exponent of each value, within the exponents of the format
    uint, exponent_mask, _ = _layout(x.dtype)
    xp.bitwise_and(x.view(uint), exponent_mask, out=binade.view(uint))
    xp.maximum(binade, x.dtype.type(2.0**fmt.emin), out=binade)
    xp.minimum(binade, x.dtype.type(2.0 ** max(fmt.emin, fmt.emax)), out=binade)
    magic = x.dtype.type(1.5 * 2.0 ** (carrier.nmant - fmt.man_bits))
    if rounding is Rounding.NEAREST:
        binade *= magic
        rounded = xp.add(x, binade)
        rounded -= binade
    else:
        magnitude = xp.abs(x)
        rounded = magnitude + magic * binade
        rounded -= magic * binade
        step = binade * x.dtype.type(fmt.eps)
        xp.subtract(rounded, step, out=rounded, where=rounded > magnitude)
        _climb(magnitude, rounded, step, x, rounding, words)
    _finish(x, rounded, out, fmt, rounding, overflow)


def _round_by_bits(
    x: Array, out: Array, fmt: Format, rounding: Rounding, overflow: Overflow, words: Array | None
) -> None:
    """Round by integer arithmetic on the bits: formats with all the exponents of the carrier.

    A carry out of the fraction moves the exponent up by one, which is the right answer everywhere,
    from the largest subnormal (to the smallest normal) to `max` (to infinity).
    """
    xp = array_module(x)
    uint, exponent_mask, sign_mask = _layout(x.dtype)
    shift = np.finfo(x.dtype).nmant - fmt.man_bits
    keep = uint(~((1 << shift) - 1) & int(np.iinfo(uint).max))
    bits = x.view(uint) & ~sign_mask
    rounded = bits.view(x.dtype)
    if rounding is Rounding.NEAREST:
        if shift:
            odd = bits >> uint(shift)
            odd &= uint(1)
            odd += uint((1 << (shift - 1)) - 1)
            bits += odd
            bits &= keep
    else:
        magnitude = rounded.copy()
        step = xp.maximum((bits & exponent_mask).view(x.dtype), x.dtype.type(2.0**fmt.emin))
        step *= x.dtype.type(fmt.eps)
        bits &= keep
        _climb(magnitude, rounded, step, x, rounding, words)
    nan = xp.isnan(x)
    if nan.any():  # a carry out of a NaN's fraction would make it a number
        xp.copyto(rounded, x, where=nan)
    _finish(x, rounded, out, fmt, rounding, overflow)


def _round_in_float64(
    x: Array, out: Array, fmt: Format, rounding: Rounding, overflow: Overflow, words: Array | None
) -> None:
    """Round a float32 block in float64, of which its values and the format's are a subset."""
    wide = x.astype(np.float64)
    _choose(wide.dtype, fmt)(wide, wide, fmt, rounding, overflow, words)
    out[...] = wide


def _climb(
    magnitude: Array,
    lower: Array,
    step: Array,
    signed: Array,
    rounding: Rounding,
    words: Array | None,
) -> None:
    """Move `lower`, the truncated magnitude, up one step wherever the rounding mode says so.

    The remainder, in steps, is exact.  Infinities and NaN have a NaN remainder and stay put.
    """
    xp = array_module(lower)
    rest = (magnitude - lower) / step
    if rounding is Rounding.NEAREST_AWAY:
        up = rest >= 0.5
    elif rounding is Rounding.UP:
        up = (rest > 0) & (signed > 0)
    elif rounding is Rounding.DOWN:
        up = (rest > 0) & (signed < 0)
    elif rounding is Rounding.TO_ODD:
        half = lower / step * 0.5
        up = (rest > 0) & (xp.floor(half) == half)
    elif rounding is Rounding.STOCHASTIC and words is not None:
        # In float64, whatever the carrier: the same words then give the same bits in both.
        up = (words + 0.5) * 2.0**-32 < rest
    else:
        return
    xp.add(lower, step, out=lower, where=up)


def _finish(
    x: Array, rounded: Array, out: Array, fmt: Format, rounding: Rounding, overflow: Overflow
) -> None:
    """Apply the format's edges to `rounded` (overflow, flushing, specials, sign) and store it."""
    xp = array_module(x)
    magnitude = xp.abs(rounded)
    if not fmt.subnormals:
        xp.copyto(rounded, 0, where=magnitude < fmt.smallest_normal)
    beyond = magnitude > fmt.max
    if beyond.any():
        largest = x.dtype.type(fmt.max)
        special = x.dtype.type("inf" if fmt.has_inf else "nan")
        xp.copyto(rounded, largest if overflow is Overflow.SATURATE else special, where=beyond)
        if overflow is Overflow.IEEE:
            xp.copyto(rounded, largest, where=beyond & _stops_at_max(x, rounding))
        xp.copysign(rounded, x, out=rounded)
    if fmt.has_negative_zero:
        xp.copysign(rounded, x, out=out)
    elif not fmt.signed:
        _without_sign_or_zero(x, rounded, out, fmt)
    else:
        xp.copysign(rounded, x, out=out)
        out += 0  # -0 + 0 is +0: the format has one zero
    if not fmt.has_nan:
        xp.copyto(out, 0, where=xp.isnan(out))


def _stops_at_max(x: Array, rounding: Rounding) -> Array:
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


def _without_sign_or_zero(x: Array, rounded: Array, out: Array, fmt: Format) -> None:
    """Store values of a scale format: zero and underflow become the smallest, negatives NaN."""
    xp = array_module(x)
    negative = x < 0
    xp.maximum(rounded, x.dtype.type(fmt.min), out=out)
    xp.copyto(out, x.dtype.type("nan"), where=negative)


def _layout(dtype: np.dtype[Any]) -> tuple[Any, Any, Any]:
    """Return the unsigned type of a carrier's bits, its exponent mask and its sign mask."""
    if dtype == np.float32:
        return np.uint32, np.uint32(0x7F800000), np.uint32(0x80000000)
    return np.uint64, np.uint64(0x7FF0000000000000), np.uint64(0x8000000000000000)


def _modes(
    fmt: AnyFormat, rounding: str | Rounding, overflow: str | Overflow | None
) -> tuple[Rounding, Overflow]:
    """Resolve names and the default overflow; a wrong name raises with the list of right ones."""
    element = fmt.element if isinstance(fmt, Scaled) else fmt
    beyond = Overflow.IEEE if overflow is None else Overflow(overflow)
    return Rounding(rounding), beyond if element.has_nan else Overflow.SATURATE


def as_float(x: npt.ArrayLike) -> Array:
    """Return x as a float32 or float64 array of its own array module."""
    array: Any = x if hasattr(x, "__array_namespace__") else np.asarray(x)
    if array.dtype.kind not in "fiub":
        msg = f"expected real numbers to round; got dtype {array.dtype}"
        raise ValueError(msg)
    if array.dtype in (np.float32, np.float64):
        return array  # type: ignore[no-any-return]
    return array.astype(np.float64)  # type: ignore[no-any-return]


def _random_words(x: Array, random: Array | np.random.Generator | int | None) -> Array:
    """Return the uint32 words that decide stochastic rounding, one per element of x."""
    if random is None:
        msg = "stochastic rounding needs `random`: a seed, a NumPy Generator, or uint32 words"
        raise ValueError(msg)
    if isinstance(random, int | np.integer | np.random.Generator):
        generator = np.random.default_rng(random)
        return generator.integers(0, 1 << 32, x.shape, dtype=np.uint32)
    words: Any = random
    if words.dtype != np.uint32 or words.shape != x.shape:
        msg = (
            f"random words must be uint32 of shape {x.shape}; "
            f"got {words.dtype} of shape {words.shape}"
        )
        raise ValueError(msg)
    return array_module(x).ascontiguousarray(words)  # type: ignore[no-any-return]
