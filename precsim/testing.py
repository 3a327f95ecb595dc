"""Property tests for number formats: what to feed a rounding function, and what it must obey.

Random doubles almost never hit what breaks a rounding routine: ties, the step from the largest
subnormal to the smallest normal, the last half step before overflow, -0.  So there are two
sources of inputs here, `specimens` (a fixed, stratified array) and Hypothesis strategies built
around the same places, and one function per law.  A law takes *your* function::

    def quantize(x):                     # array -> array, to e4m3
        return my_cast(x)

    precsim.testing.check_rounding(quantize, "e4m3")

It returns how many inputs it compared, and raises `AssertionError` with the first that fails.
The strategies need Hypothesis (``pip install hypothesis``); the laws do not.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from precsim.formats import exact
from precsim.formats.codes import code_dtype
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Mode, Overflow, Rounding, rounding_mode
from precsim.formats.registry import FORMATS, AnyFormat, element_of
from precsim.formats.registry import format as resolve

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Array = npt.NDArray[Any]
Quantizer = Callable[[Array], Array]

GRIDS = tuple(dict.fromkeys(element_of(f) for f in FORMATS.values()))
"""Every registered format that one number can be rounded to (of scaled formats, the elements)."""


def specimens(
    fmt: str | AnyFormat, dtype: npt.DTypeLike = np.float64, per_binade: int = 128
) -> Array:
    """Return inputs that find mistakes: an ascending array of `dtype`, NaN at the end.

    Values of the format in every binade, subnormals first and those beyond `max` last (all of
    them where a binade has up to `per_binade`, else evenly spread with both ends); the midpoints
    and quarters between them; the neighbours of all these in `dtype`; one more number in every
    binade of `dtype`; both ends of `dtype`, zeros, infinities and NaN.  Both signs of everything.
    """
    grid, kind = element_of(resolve(fmt)), np.dtype(dtype)
    carrier = np.finfo(kind)
    hidden = 2**grid.man_bits
    picks = np.unique(np.linspace(0, hidden - 1, min(hidden, per_binade)).astype(np.int64))
    steps = (picks[:, None] + np.array([0, 0.25, 0.5, 0.75])).ravel()
    binades = np.arange(grid.emin, max(grid.emin, grid.emax) + 2)[:, None]
    tiniest = int(carrier.minexp) - int(carrier.nmant)
    with np.errstate(all="ignore"):  # the binade beyond a carrier's last one is all infinities
        subnormal = np.ldexp(steps, grid.emin - grid.man_bits)
        normal = np.ldexp(hidden + steps, binades - grid.man_bits)
        x = np.concatenate([subnormal, normal.ravel()]).astype(kind)
        x = np.concatenate([x, np.nextafter(x, -np.inf), np.nextafter(x, np.inf)])
        everywhere = np.ldexp(1.375, np.arange(tiniest, carrier.maxexp)).astype(kind)
    ends = [carrier.smallest_subnormal, carrier.smallest_normal, carrier.max, np.inf]
    x = np.unique(np.concatenate([x, everywhere, np.array(ends, kind)]))
    positive, specials = x[x > 0], np.array([-0.0, 0.0, np.nan], kind)
    return np.concatenate([-positive[::-1], specials[:2], positive, specials[2:]])


def assert_same(got: Array, want: Array, inputs: Array, law: str = "same values") -> int:
    """Check that two arrays hold the same numbers: NaN equals NaN, and -0 does not equal 0.

    Returns how many were compared; raises `AssertionError` with the first input that fails.
    """
    if got.shape != want.shape:
        msg = f"{law}: expected shape {want.shape}, got {got.shape}"
        raise AssertionError(msg)
    same = (got == want) & (np.signbit(got) == np.signbit(want)) | (np.isnan(got) & np.isnan(want))
    for i in np.flatnonzero(~same)[:1]:
        _fail(law, inputs.ravel()[i], got.ravel()[i], want.ravel()[i])
    return got.size


def _applied(quantize: Quantizer, x: Array) -> Array:
    """Return what quantize makes of a copy of x, and a copy of that: it may work in place."""
    return np.array(quantize(x.copy()))


def check_rounding(
    quantize: Quantizer,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    inputs: Array | None = None,
    random: Array | None = None,
) -> int:
    """Check every result, the sign of zero included, against `precsim.formats.exact.round`.

    For "stochastic" give `random`, the uint32 words that quantize used, as `precsim.quantize`
    takes them.  NaN results are equal whatever their payload.
    """
    x = specimens(fmt) if inputs is None else inputs
    grid, mode = element_of(resolve(fmt)), rounding_mode(rounding)
    words = [None] * x.size if random is None else random.ravel().tolist()
    fractions = [None if word is None else Fraction(2 * word + 1, 2**33) for word in words]
    numbers = zip(x.ravel().tolist(), fractions, strict=True)
    want = [exact.round(number, grid, mode, overflow, at) for number, at in numbers]
    law = f"{grid.name}, {mode}"
    return assert_same(_applied(quantize, x), np.array(want, np.float64).reshape(x.shape), x, law)


def check_idempotent(quantize: Quantizer, fmt: str | AnyFormat, inputs: Array | None = None) -> int:
    """Check that a rounded value stays where it is, bit for bit (NaN stays NaN)."""
    once = _applied(quantize, specimens(fmt) if inputs is None else inputs)
    return assert_same(_applied(quantize, once), once, once, "rounding twice")


def check_monotone(quantize: Quantizer, fmt: str | AnyFormat, inputs: Array | None = None) -> int:
    """Check that a larger input never gives a smaller result; results that are NaN are left out."""
    x = np.sort((specimens(fmt) if inputs is None else inputs).ravel())
    y = _applied(quantize, x)
    known = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[known], y[known]
    for i in np.flatnonzero(y[1:] < y[:-1])[:1]:
        _fail(f"monotone after {x[i]!r} -> {y[i]!r}", x[i + 1], y[i + 1], f"at least {y[i]!r}")
    return len(x)


def check_sign_symmetric(
    quantize: Quantizer, fmt: str | AnyFormat, inputs: Array | None = None
) -> int:
    """Check that -x gives minus what x gives (a law of all modes but "up" and "down").

    NaN is left out, and where the format has no -0, zero is +0 on both sides.  For signed formats.
    """
    grid = element_of(resolve(fmt))
    if not grid.signed:
        msg = f"{grid.name} has no sign to be symmetric in: expected a signed format"
        raise ValueError(msg)
    x = specimens(fmt) if inputs is None else inputs
    x = x[~np.isnan(x)]
    want = -_applied(quantize, x)
    if not grid.has_negative_zero:
        want = want + 0.0
    return assert_same(_applied(quantize, -x), want, -x, "sign symmetry")


def check_scales(
    quantize: Quantizer, fmt: str | AnyFormat, power: int = 1, inputs: Array | None = None
) -> int:
    """Check that ``2^power * x`` gives ``2^power`` times what x gives, away from both ends.

    That is what makes a format *floating* point, so it is refused for integers.  Left out are
    inputs which, before or after scaling, are below the smallest normal value or above max / 2,
    and those that the dtype of `inputs` cannot scale exactly.
    """
    grid = element_of(resolve(fmt))
    x = (specimens(fmt) if inputs is None else inputs).ravel()
    with np.errstate(all="ignore"):
        scaled = np.ldexp(x, power)
        low, high = np.minimum(x, scaled), np.maximum(x, scaled)
        exactly = np.ldexp(scaled, -power) == x
        x = x[exactly & (low >= grid.smallest_normal) & (high <= grid.max / 2)]
    if grid.is_integer or not x.size:
        msg = f"no input lies far enough from both ends of {grid!r} to be scaled by 2^{power}"
        raise ValueError(msg)
    want = np.ldexp(_applied(quantize, x), power)
    return assert_same(_applied(quantize, np.ldexp(x, power)), want, x, f"scaling by 2^{power}")


def check_codes_round_trip(
    encode: Callable[[Array], Array], decode: Callable[[Array], Array], fmt: str | AnyFormat
) -> int:
    """Check that every code of a value survives decode and encode, and NaN codes stay NaN.

    All codes up to 16 bits, else 2^16 spread over all of them.  Left out are codes that no value
    has: subnormals of a format that flushes them, the lowest two's complement integer.
    """
    grid = element_of(resolve(fmt))
    top = 2**grid.bits
    spread = np.random.default_rng(0).integers(0, top - 1, 2**16, np.uint64, endpoint=True)
    codes = np.arange(top, dtype=np.uint64) if grid.bits <= 16 else spread
    codes = codes.astype(code_dtype(grid))
    values = decode(codes)
    again = encode(values)
    unused = (values < grid.min) & np.isfinite(values)
    if not grid.subnormals and grid.has_zero:
        unused |= (values == 0) & (codes % 2 ** (grid.bits - 1) != 0)
    nan = np.isnan(values)
    wrong = np.where(nan, ~np.isnan(decode(again)), again != codes) & ~unused
    for i in np.flatnonzero(wrong)[:1]:
        law = f"code {int(codes[i]):#x} of {grid.name}"
        _fail(law, values[i], f"code {int(again[i]):#x}", "the same code" if not nan[i] else "NaN")
    return int(codes.size - unused.sum())


def doubles(dtype: npt.DTypeLike = np.float64) -> SearchStrategy[float]:
    """Strategy: any float of `dtype`, with NaN, infinities, -0, subnormals and both ends common."""
    st, carrier = _strategies(), np.finfo(np.dtype(dtype))
    width = carrier.bits
    tiny, huge = float(carrier.smallest_normal), float(carrier.max)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, huge, -huge, tiny, -tiny]
    return st.one_of(  # type: ignore[no-any-return]
        st.sampled_from(special),
        st.floats(width=width),
        st.floats(-tiny, tiny, width=width),
        st.floats(huge / 2, huge, width=width),
        st.integers(int(carrier.minexp), int(carrier.maxexp) - 1).map(lambda e: 2.0**e),
    )


def codes(fmt: str | AnyFormat) -> SearchStrategy[int]:
    """Strategy: any bit pattern of the format, those of NaN and infinity included."""
    last = 2 ** element_of(resolve(fmt)).bits - 1
    return _strategies().integers(0, last)  # type: ignore[no-any-return]


def near_ties(fmt: str | AnyFormat, dtype: npt.DTypeLike = np.float64) -> SearchStrategy[float]:
    """Strategy: midpoints between neighbouring values, and numbers within two ulps of them.

    The last midpoint is the overflow threshold, the first is half the smallest value.  For a
    `dtype` that cannot hold a midpoint exactly it is rounded to the nearest that can.
    """
    grid, kind, st = element_of(resolve(fmt)), np.dtype(dtype), _strategies()
    hidden = 2**grid.man_bits

    def tie(negative: bool, exponent: int, steps: int, nudge: int) -> float:
        if exponent >= grid.emin:
            steps += hidden
        with np.errstate(all="ignore"):  # the last midpoint may lie beyond what `dtype` holds
            middle = np.ldexp(steps + 0.5, max(exponent, grid.emin) - grid.man_bits)
            x = (-middle if negative else middle).astype(kind)
            for _ in range(abs(nudge)):
                x = np.nextafter(x, math.copysign(math.inf, nudge))
        return float(x)

    exponents = st.integers(grid.emin - 1, max(grid.emin - 1, grid.emax))
    steps, nudges = st.integers(0, hidden - 1), st.integers(-2, 2)
    return st.builds(tie, st.booleans(), exponents, steps, nudges)  # type: ignore[no-any-return]


def arrays(fmt: str | AnyFormat, dtype: npt.DTypeLike = np.float64) -> SearchStrategy[Array]:
    """Strategy: arrays of `doubles` and `near_ties`, of one dimension and up to 64 elements."""
    st = _strategies()
    element = st.one_of(doubles(dtype), near_ties(fmt, dtype))
    numbers = st.lists(element, max_size=64)
    return numbers.map(lambda xs: np.array(xs, dtype))  # type: ignore[no-any-return]


def formats(max_bits: int = 16) -> SearchStrategy[Format]:
    """Strategy: formats of at most `max_bits`, the registered ones and others of every kind."""
    st = _strategies()

    def make(exp_bits: int, man_bits: int, specials: Specials, shift: int, flush: bool) -> Format:
        bias = 2 ** (exp_bits - 1) - 1 + shift
        name = f"e{exp_bits}m{man_bits}_{specials.value}_bias{bias}"
        return Format(name, exp_bits, man_bits, specials, bias, subnormals=not flush)

    made = st.builds(
        make,
        st.integers(2, 8),
        st.integers(1, 10),
        st.sampled_from(Specials),
        st.integers(-3, 3),
        st.booleans(),
    )
    registered = st.sampled_from([f for f in GRIDS if f.bits <= max_bits])
    narrow = made.filter(lambda f: f.bits <= max_bits)
    return st.one_of(registered, narrow)  # type: ignore[no-any-return]


def _strategies() -> Any:
    """Return hypothesis.strategies, or say how to get it."""
    try:
        return importlib.import_module("hypothesis.strategies")
    except ModuleNotFoundError as error:
        msg = "strategies need Hypothesis: pip install hypothesis (the check_* laws work without)"
        raise ModuleNotFoundError(msg, name="hypothesis") from error


def _fail(law: str, x: Any, got: Any, want: Any) -> None:
    """Raise the counterexample; hexadecimal shows the bits that decimal hides."""
    bits = float(x).hex()
    msg = f"{law}: {x!r} ({bits}) gave {got!r}, expected {want!r}"
    raise AssertionError(msg)
