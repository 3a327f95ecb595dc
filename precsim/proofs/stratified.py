"""The quick proof: the inputs at which rounding can go wrong, in both carriers.

A rounding function is a staircase, so two staircases that agree at every step's edge, and just
beside it, agree everywhere.  The inputs here are all values and midpoints of the format, the two
carrier numbers on either side of each, two points in every binade of the carrier, and the special
numbers.  In float64 they include what float32 does not have: midpoints plus one float64 ulp, on
which a conversion by way of float32 rounds twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from precsim import testing
from precsim.formats import exact
from precsim.formats.codes import code_dtype, decode, encode
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.proofs.significands import round_by_significand
from precsim.proofs.tables import places, round_by_table, table

Array = npt.NDArray[Any]

WORDS = (0, 2**32 - 1, 2**31 - 1, 2**31, 0x9E3779B1)
"""Random words for stochastic rounding: both ends, either side of one half, and one other."""

NANS = {
    "float32": (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF),
    "float64": (0x7FF8 << 48, 0xFFF8 << 48, (0x7FF0 << 48) + 1, 2**64 - 1),
}
"""NaNs of both signs: quiet, the least and the greatest payload (which tempt bit tricks)."""


def inputs(fmt: Format, dtype: npt.DTypeLike = np.float64) -> Array:
    """Return the edges of the format's staircase for every mode, and their neighbours in `dtype`.

    Ascending, both signs, zeros, infinities and four NaNs at the end; about 12 inputs for each
    value of the format.  Raises `ValueError` for formats of more than 20 bits.
    """
    kind: Any = np.dtype(dtype).type
    carrier = np.finfo(kind)
    rows = table(fmt)
    middle, _ = places(rows, Rounding.NEAREST, negative=False)
    edges = np.concatenate([rows.values, middle, 2 * rows.values[-1:]])
    if fmt.bits <= 8:
        edges = np.concatenate([edges, *(places(rows, Rounding.STOCHASTIC, False, w)[0]
                                         for w in WORDS)])  # fmt: skip
    with np.errstate(all="ignore"):  # float32 may not reach as far as the format's next value
        edges = edges.astype(kind)
        near = [edges, np.nextafter(edges, kind(np.inf)), np.nextafter(edges, kind(0))]
        near += [np.nextafter(near[1], kind(np.inf)), np.nextafter(near[2], kind(0))]
    lowest = int(carrier.minexp) - int(carrier.nmant)
    binades = np.ldexp(kind(1), np.arange(lowest, carrier.maxexp))
    everywhere = [binades, np.nextafter(binades, kind(0)), binades * kind(1.375)]
    ends = np.array([carrier.max, np.inf], kind)
    magnitude = np.unique(np.concatenate([*near, *everywhere, ends]))
    unsigned = f"u{np.dtype(kind).itemsize}"
    nans = np.array(NANS[np.dtype(kind).name], unsigned).view(kind)
    return np.concatenate([-magnitude[::-1], magnitude, nans])


def check_kernels(
    fmt: Format, rounding: Rounding, overflow: Overflow, dtype: npt.DTypeLike = np.float64
) -> int:
    """Check the kernel on `inputs` against the table and against the integer significands.

    Stochastic rounding is checked with each of `WORDS` for all inputs, and with all of them mixed.
    Returns how many results were compared; raises `AssertionError` with the first that differs.
    """
    x = inputs(fmt, dtype)
    mode = f"{fmt.name} {rounding.value} {overflow.value} {np.dtype(dtype)}"
    if rounding is not Rounding.STOCHASTIC:
        got = quantize(x, fmt, rounding, overflow)
        compared = testing.assert_same(got, round_by_table(x, fmt, rounding, overflow), x, mode)
        want = round_by_significand(x, fmt, rounding, overflow)
        return compared + testing.assert_same(got, want, x, f"{mode}, by significand")
    compared = 0
    for word in WORDS:
        got = quantize(x, fmt, rounding, overflow, np.full(x.shape, word, np.uint32))
        want = round_by_table(x, fmt, rounding, overflow, word)
        compared += testing.assert_same(got, want, x, f"{mode}, word {word:#010x}")
    words = np.resize(np.array(WORDS, np.uint32), x.shape)
    got = quantize(x, fmt, rounding, overflow, words)
    want = round_by_significand(x, fmt, rounding, overflow, words)
    return compared + testing.assert_same(got, want, x, f"{mode}, mixed words")


def check_wide(
    fmt: Format,
    rounding: Rounding,
    overflow: Overflow,
    dtype: npt.DTypeLike = np.float64,
    per_binade: int = 64,
) -> int:
    """Check the kernel of a format too wide for a table against the integer significands.

    On `precsim.testing.specimens`: values, midpoints and neighbours spread over every binade.
    """
    x = testing.specimens(fmt, dtype, per_binade)
    words = np.resize(np.array(WORDS, np.uint32), x.shape)
    got = quantize(x, fmt, rounding, overflow, words)
    want = round_by_significand(x, fmt, rounding, overflow, words)
    return testing.assert_same(got, want, x, f"{fmt.name} {rounding.value} {overflow.value}")


def check_codes(fmt: Format) -> int:
    """Check every code: it decodes, encodes and rounds as the specification says.

    Decoding is compared with `exact.decode`, code by code; encoding must give the same code back
    (for a NaN, the canonical one); and rounding must leave the value alone in every mode, with
    either overflow rule, in every carrier that holds the format.  Left out of the last two are
    codes which no rounding produces: flushed subnormals and the lowest integer in two's complement.
    Returns how many results were compared; raises `AssertionError` with the first that differs.
    """
    codes = np.arange(2**fmt.bits, dtype=code_dtype(fmt))
    values = decode(codes, fmt)
    want = np.array([exact.decode(code, fmt) for code in range(2**fmt.bits)])
    compared = testing.assert_same(values, want, codes, f"decoding {fmt.name}")
    compared += testing.check_codes_round_trip(
        lambda v: encode(v, fmt), lambda c: decode(c, fmt), fmt
    )
    if fmt.has_nan:
        compared += _check_canonical_nan(fmt, values)

    kept = values[~(values < fmt.min) | np.isinf(values)]
    words = np.full(kept.shape, 0, np.uint32)  # the word that goes up most readily
    for dtype in carriers(fmt):
        carried: Array = kept.astype(dtype)
        for rounding in Rounding:
            for overflow in Overflow:
                finite = np.isfinite(carried) | (overflow is Overflow.IEEE)
                got = quantize(carried, fmt, rounding, overflow, words)[finite]
                law = f"values of {fmt.name} stay, {rounding.value}, {overflow.value}, {dtype}"
                compared += testing.assert_same(got, carried[finite], carried[finite], law)
    return compared


def _check_canonical_nan(fmt: Format, values: Array) -> int:
    """Check that each NaN, however it was coded, gets the one code of `exact.encode`."""
    got = encode(values[np.isnan(values)], fmt)
    want = np.full(got.shape, exact.encode(np.nan, fmt), got.dtype)
    return testing.assert_same(got, want, got, f"the canonical NaN of {fmt.name}")


def carriers(fmt: Format) -> list[type]:
    """Return the carriers that hold every value of the format: float64, and float32 or not."""
    narrow = fmt.exp_bits < 9 and fmt.man_bits < 24 and fmt.max <= np.finfo(np.float32).max
    fits = narrow and fmt.quantum >= np.finfo(np.float32).smallest_subnormal
    return [np.float32, np.float64] if fits else [np.float64]
