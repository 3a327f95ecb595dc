"""Rounding, random words and narrow accumulation in C, one element at a time, for a device.

On a host, `precsim.formats.kernels` goes over a block of memory a dozen times while it is in the
cache.  A device has no such cache: every pass goes through its memory, so there everything that
happens to one element happens in one pass, in the registers of one thread.  The rules are the same,
written for one value and in integers: split x into an integer significand and an exponent, drop the
bits that the format has not, decide by the rest, put it together again.  No step rounds, except the
one that is the subject; and none may be contracted (see `NO_CONTRACTION`).

The code is C that both a C compiler and CUDA's take.  `precsim.backend.cupy` hands it to CuPy; the
tests compile it for the host and hold it to the specification, value by value, as they do the
array kernels.  Philox4x64-10 is `precsim.backend.random`'s.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow, Rounding, Stochastic, Variant, stochastic

NO_CONTRACTION = ("--fmad=false",)
"""What the device's compiler must be told: a product and a sum are two roundings, not one."""

MODES = (
    Rounding.NEAREST, Rounding.NEAREST_AWAY, Rounding.TOWARD_ZERO, Rounding.UP, Rounding.DOWN,
    Rounding.TO_ODD,
)  # fmt: skip
"""Rounding modes by their number in the code; after them come `VARIANTS`."""
VARIANTS = (Variant.EXACT, Variant.A, Variant.B, Variant.C, Variant.EQUAL)

SIGNED, SUBNORMALS, ZERO, NEGATIVE_ZERO, INF, NAN, SATURATE = (1 << i for i in range(7))


class Rule(NamedTuple):
    """A format, a rounding mode and an overflow rule as numbers, in the order of `PARAMETERS`."""

    largest: float
    smallest_normal: float
    least: float
    man_bits: int
    emin: int
    emax: int
    mode: int
    bits: int
    flags: int


PARAMETERS = (
    "double largest, double smallest_normal, double least, "
    "int man_bits, int emin, int emax, int mode, int bits, int flags"
)
ARGUMENTS = "largest, smallest_normal, least, man_bits, emin, emax, mode, bits, flags"


def rule(fmt: Format, rounding: Mode, overflow: Overflow) -> Rule:
    """Return what `precsim_round` needs to know."""
    variant = stochastic(rounding)
    if variant is not None:
        mode, bits = len(MODES) + VARIANTS.index(variant.variant), variant.bits or 0
    else:
        assert not isinstance(rounding, Stochastic)
        mode, bits = MODES.index(rounding), 0
    flags = (
        SIGNED * fmt.signed
        | SUBNORMALS * fmt.subnormals
        | ZERO * fmt.has_zero
        | NEGATIVE_ZERO * fmt.has_negative_zero
        | INF * fmt.has_inf
        | NAN * fmt.has_nan
        | SATURATE * (overflow is Overflow.SATURATE)
    )
    return Rule(
        fmt.max, fmt.smallest_normal, fmt.min, fmt.man_bits, fmt.emin, max(fmt.emin, fmt.emax),
        mode, bits, flags,
    )  # fmt: skip


def settled(found: Rule, arguments: str = ARGUMENTS) -> str:
    """Return the arguments of `precsim_round` with those spelled out that decide what code it needs.

    A compiler leaves out the code of other modes, and of what the format does not lack: a third
    remains.  There is one kernel for each mode and each set of flags, of which formats have few.
    """
    *numbers, _, bits, _ = arguments.split(", ")
    return ", ".join((*numbers, str(found.mode), bits, str(found.flags)))


TYPES = """
typedef unsigned int word32;
typedef unsigned long long word64;
"""


def parameters(real: str) -> str:
    """Return `PARAMETERS` of rounding in a carrier, "float" or "double"; numbers have its width."""
    return PARAMETERS.replace("double", real)


def _rounding(real: str) -> str:
    """Return the code of rounding in a carrier; the names for float end in _float.

    What a float holds fits into half the bits, and a device computes with those twice as fast.
    """
    s, word, width, fraction = (
        ("_float", "word32", 32, 23) if real == "float" else ("", "word64", 64, 52)
    )
    bias = (1 << width - fraction - 2) - 1
    infinity = (2 * bias + 1) << fraction
    nan = infinity | 1 << fraction - 1
    return f"""
PRECSIM {real} precsim_from_bits{s}({word} bits) {{
    union {{ {word} bits; {real} value; }} both;
    both.bits = bits;
    return both.value;
}}

PRECSIM {word} precsim_to_bits{s}({real} value) {{
    union {{ {word} bits; {real} value; }} both;
    both.value = value;
    return both.bits;
}}

/* 2^exponent, from {1 - bias - fraction} up. */
PRECSIM {real} precsim_power{s}(int exponent) {{
    if (exponent < {1 - bias}) return precsim_from_bits{s}(({word})1 << (exponent + {bias + fraction - 1}));
    return precsim_from_bits{s}(({word})(exponent + {bias}) << {fraction});
}}

/* Whether a magnitude that lies rest / 2^dropped of a step above its lower neighbour, an odd or even
   multiple of the step, goes up.  The rest has at most {fraction + 1} bits. */
PRECSIM int precsim_goes_up{s}({word} rest, int dropped, int odd, int negative, word32 word,
                            int mode, int bits) {{
    {word} half = ({word})1 << ((dropped < {fraction + 3} ? dropped : {fraction + 3}) - 1);
    word64 wide = rest, twice = 2ull * word + 1;
    int spare = dropped - 33 < 54 ? dropped - 33 : 54;
    double share, t;
    switch (mode) {{
    case 0: return rest > half || (rest == half && odd);
    case 1: return rest >= half;
    case 2: return 0;
    case 3: return rest && !negative;
    case 4: return rest && negative;
    case 5: return rest && !odd;
    case 6:  /* (word + 1/2) / 2^32 is less than the share */
        if (spare <= 0) return twice < wide << -spare;
        return twice < (wide >> spare) + ((wide & ((1ull << spare) - 1)) != 0);
    case 10: return rest && word < 0x80000000u;
    }}
    share = ldexp((double)rest, -dropped);
    t = bits ? (double)(word >> (32 - bits)) : 0.0;
    if (mode == 7) return ldexp(t + 1.0, -bits) <= share;
    if (mode == 8) return ldexp(t + 0.5, -bits) <= share;
    return t < rint(ldexp(share, bits));
}}

/* A magnitude, finite and not 0, lies `rest` / 2^dropped of a step above `kept` steps, of
   2^(binade - man_bits) each; if none is dropped it is a multiple of the step. */
typedef struct {{ {word} kept, rest; int dropped, binade; }} precsim_parts{s};

PRECSIM precsim_parts{s} precsim_cut{s}({real} magnitude, int emin, int man_bits) {{
    {word} all = precsim_to_bits{s}(magnitude), whole = all & {(1 << fraction) - 1:#x};
    int field = (int)(all >> {fraction}), exponent = field ? field - {bias} : {1 - bias}, shift;
    precsim_parts{s} parts;
    if (field) whole |= ({word})1 << {fraction};
    while (!(whole >> {fraction})) {{  /* a subnormal of the carrier */
        whole <<= 1;
        exponent -= 1;
    }}
    /* Beyond emax any step does: what comes of it is too large. */
    parts.binade = exponent < emin ? emin : exponent;
    parts.dropped = (parts.binade - man_bits) - (exponent - {fraction});
    shift = parts.dropped < {fraction + 3} ? parts.dropped : {fraction + 3};  /* so far all is gone */
    if (shift < 0) shift = 0;
    parts.kept = whole >> shift;
    parts.rest = whole & ((({word})1 << shift) - 1);
    return parts;
}}

/* Round one value.  The rules are those of precsim.formats.quantize. */
PRECSIM {real} precsim_round{s}({real} x, word32 word, {parameters(real)}) {{
    const {word} sign = ({word})1 << {width - 1}, infinity = {infinity:#x}, none = {nan:#x};
    {word} all = precsim_to_bits{s}(x), magnitude = all & ~sign;
    int negative = (int)(all >> {width - 1});
    int is_nan = magnitude > infinity, is_inf = magnitude == infinity;
    {real} size = precsim_from_bits{s}(is_nan ? magnitude | none : magnitude);  /* a quiet NaN */

    if (magnitude < infinity && magnitude != 0) {{
        precsim_parts{s} parts = precsim_cut{s}(size, emin, man_bits);
        if (parts.dropped > 0) {{
            parts.kept += precsim_goes_up{s}(parts.rest, parts.dropped, (int)(parts.kept & 1), negative,
                                          word, mode, bits);
            size = ({real})parts.kept * precsim_power{s}(parts.binade - man_bits);
        }}
    }}
    if (!(flags & {SUBNORMALS}) && (flags & {ZERO}) && size < smallest_normal) size = 0;

    if (size > largest) {{
        int inward = mode == 2 || mode == 5 || (mode == 3 && negative) || (mode == 4 && !negative);
        if ((flags & {SATURATE}) || (inward && !is_inf)) size = largest;
        else size = precsim_from_bits{s}(flags & {INF} ? infinity : none);
    }}
    if (size != size && !(flags & {NAN})) return 0;
    if (flags & {SIGNED}) {{
        if (!(flags & {NEGATIVE_ZERO}) && size == 0) return 0;
        return negative ? precsim_from_bits{s}(precsim_to_bits{s}(size) | sign) : size;
    }}
    if (!is_nan && x < 0) return precsim_from_bits{s}(flags & {NAN} ? none : 0);
    return size < least ? least : size;
}}
"""


ROUND = _rounding("double")
"""What rounds a double: `precsim_round`."""
ROUND_FLOAT = _rounding("float")
"""What rounds a float: `precsim_round_float`."""

PHILOX = """
/* High and low halves of the product of two 64-bit words. */
PRECSIM word64 precsim_high(word64 a, word64 b) {
    word64 al = (word32)a, ah = a >> 32, bl = (word32)b, bh = b >> 32;
    word64 cross = al * bh;
    word64 middle = ((al * bl) >> 32) + (word32)cross + ah * bl;
    return ah * bh + (cross >> 32) + (middle >> 32);
}

/* The four output words for a counter of four words, the least significant first, and a key. */
PRECSIM void precsim_philox(word64 c0, word64 c1, word64 c2, word64 c3, word64 k0, word64 k1,
                            word64 *out) {
    for (int turn = 0; turn < 10; turn++) {
        word64 high0 = precsim_high(c0, 0xD2E7470EE14C6C93ull), low0 = c0 * 0xD2E7470EE14C6C93ull;
        word64 high1 = precsim_high(c2, 0xCA5A826395121157ull), low1 = c2 * 0xCA5A826395121157ull;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}
"""


OUTER_PARAMETERS = re.sub(r"(\w+)(,|$)", r"outer_\1\2", PARAMETERS)
OUTER_ARGUMENTS = re.sub(r"(\w+)(,|$)", r"outer_\1\2", ARGUMENTS)


def dot(real: str, inner: str = ARGUMENTS, outer: str = OUTER_ARGUMENTS) -> str:
    """Return the code of one element of a matmul whose total is rounded after every addition.

    `inner` and `outer` are arguments of `precsim_round`, as they are or `settled`.

    `real` is the carrier, "float" or "double": products and sums are rounded to it first, as the
    array arithmetic of the host does.  Every `chunk` products (0: never) the total goes to a second
    one, which has a rule of its own, and begins afresh.
    """
    return f"""
PRECSIM {real} precsim_dot_{real}(const {real} *a, const {real} *b, long long b_step,
                                  long long length, long long chunk,
                                  {PARAMETERS},
                                  {OUTER_PARAMETERS}) {{
    {real} total = 0, whole = 0;
    for (long long k = 0; k < length; k++) {{
        {real} product = a[k] * b[k * b_step];
        {real} sum = total + product;
        total = ({real})precsim_round(sum, 0, {inner});
        if (chunk && ((k + 1) % chunk == 0 || k + 1 == length)) {{
            {real} longer = whole + total;
            whole = ({real})precsim_round(longer, 0, {outer});
            total = 0;
        }}
    }}
    return chunk ? whole : total;
}}
"""
