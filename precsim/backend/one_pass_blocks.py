"""Rounding to a scaled format in C, in one pass: the rules of `precsim.formats.blocks`.

Some threads of a block share a block of the array: one finds out where it lies, each takes a part of
its values, together they find the largest, one makes the scale, and each rounds its part, which is
still in the cache.  Affine
blocks want both of their ends, which are the largest magnitudes of either sign.  Two
kinds of scale need the whole tensor's ends, and so a pass of its own before: a single
scale for the tensor, and the second of two levels.  What is computed is what NumPy computes,
division for division: in float64, or in float32 where a library multiplies with a float32 factor.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from precsim.backend import one_pass
from precsim.backend.grid import THREADS
from precsim.formats.blocks import MINDFUL, doubled_above, wider
from precsim.formats.modes import Mode, Overflow, Rounding
from precsim.formats.scaled import FP32, Scaled, ScaleRule
from precsim.formats.tiling import Tiling

MOST_GROUPS = 32
"""Blocks of the array that a block of threads works on at most."""
EACH = 4
"""Values of a block that a thread has at least, where there are so many."""
PIECE = 1 << 12
"""Values of a tensor with a single scale that a block of threads takes."""

_THREAD_BITS = THREADS.bit_length() - 1

(RATIO, POWER, CLIPPED_POWER, TWO_LEVELS, AFFINE, FACTOR, FACTOR_OF_SCALE, TWO_FACTORS,
 GIVEN) = range(9)  # fmt: skip
"""How a scale is made, in the order of the code; from `FACTOR` on values are multiplied."""


class Plan(NamedTuple):
    """A scaled format and a rounding mode as numbers, in the order of `PARAMETERS`."""

    kind: int
    amax_min: float
    most: float  # what amax is divided by, or the distance of the ends
    unit: float  # 2^-emax of elements; of two levels, the largest element times the largest scale
    threshold: float  # `precsim.formats.blocks.doubled_above`
    smallest_block: float
    largest_block: float
    smallest_tensor: float
    factor: float
    low: float  # the elements' range
    high: float
    lost: float  # what stands for a quotient that is not zero but has become it; 0: nothing does
    element: one_pass.Rule
    scale: one_pass.Rule
    tensor: one_pass.Rule

    @property
    def needs_top(self) -> bool:
        """Whether scales depend on the whole tensor."""
        return self.kind in (TWO_LEVELS, TWO_FACTORS)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All the numbers, one after the other."""
        return (*self[:-3], *self.element, *self.scale, *self.tensor)


def _prefixed(prefix: str, names: str) -> str:
    return re.sub(r"(\w+)(,|$)", rf"{prefix}_\1\2", names)


_PLAIN = (
    "int kind, double amax_min, double most, double unit, double threshold, double smallest_block, "
    "double largest_block, double smallest_tensor, double factor, double low, double high, double lost"
)
_RULES = ("scale", "tensor")
PARAMETERS = ", ".join(
    (_PLAIN, one_pass.PARAMETERS, *(_prefixed(rule, one_pass.PARAMETERS) for rule in _RULES))
)
_SCALE, _TENSOR = (_prefixed(rule, one_pass.ARGUMENTS) for rule in _RULES)
_ALL = ", ".join(word.split()[-1] for word in PARAMETERS.split(", "))


@lru_cache(maxsize=1024)
def plan(fmt: Scaled, rounding: Mode, factor: float) -> Plan:
    """Return what the kernel needs to know."""
    two, inverse = fmt.tensor_scale is not None, fmt.rule is ScaleRule.INVERSE
    if fmt.rule is ScaleRule.DELAYED:
        kind = GIVEN
    elif inverse:
        kind = TWO_FACTORS if two else FACTOR if fmt.scale == FP32 else FACTOR_OF_SCALE
    elif two:
        kind = TWO_LEVELS
    elif fmt.affine:
        kind = AFFINE
    elif fmt.rule.gives_powers:
        kind = POWER if fmt.scale.man_bits else CLIPPED_POWER
    else:
        kind = RATIO
    saturates = kind == TWO_FACTORS or not fmt.scale.has_inf
    beyond = Overflow.SATURATE if saturates else Overflow.IEEE
    tensor = fmt.tensor_scale or FP32
    most = fmt.element.max
    if fmt.affine:
        most = fmt.max - fmt.min
    elif fmt.rule is ScaleRule.SPAN:
        most = (fmt.max - fmt.min) / 2
    return Plan(
        kind=kind,
        amax_min=fmt.amax_min,
        most=most,
        unit=fmt.element.max * fmt.scale.max if two else 2.0**-fmt.element.emax,
        threshold=doubled_above(fmt),
        smallest_block=fmt.smallest_scale,
        largest_block=fmt.scale.max,
        smallest_tensor=tensor.smallest_subnormal,
        factor=factor,
        low=fmt.min,
        high=fmt.max,
        lost=fmt.element.quantum / 4 if rounding in MINDFUL else 0.0,
        element=one_pass.rule(
            wider(fmt.element) if fmt.full_range or fmt.affine else fmt.element,
            rounding,
            Overflow.SATURATE,
        ),
        scale=one_pass.rule(fmt.scale, Rounding.NEAREST, beyond),
        tensor=one_pass.rule(
            tensor, Rounding.NEAREST, Overflow.IEEE if tensor.has_inf else Overflow.SATURATE
        ),
    )


class Shape(NamedTuple):
    """Where blocks lie, in the order of `SHAPE`; an array is seen as matrices of rows x columns."""

    blocks: int
    rows: int
    columns: int
    height: int
    width: int
    lane_bits: int  # 2^lane_bits threads share a block of the array
    spread: int  # whether neighbouring threads are in neighbouring blocks

    @property
    def grid(self) -> tuple[int]:
        """How many blocks of threads it takes."""
        return (-((-self.blocks << self.lane_bits) // THREADS),)


_EXTENT = "long long blocks, long long rows, long long columns, long long height, long long width"
_NAMES = "blocks, rows, columns, height, width"
SHAPE = f"{_EXTENT}, int lane_bits, int spread"


def shape(tiling: Tiling, *, whole: bool) -> Shape:
    """Return where the blocks lie; `whole`: they are pieces of a tensor with a single scale."""
    if whole:
        size = int(np.prod(tiling.shape))
        return Shape(-(-size // PIECE), 1, size, 1, PIECE, _THREAD_BITS, 0)
    count, rows, columns = tiling.stack
    height, width = tiling.height, tiling.width
    blocks = count * -(-rows // height) * -(-columns // width)
    spread = width == 1 and columns > 1
    fewest = THREADS // MOST_GROUPS
    wanted = fewest if spread else min(max(height * width // EACH, fewest), THREADS)
    return Shape(blocks, rows, columns, height, width, (wanted - 1).bit_length(), int(spread))


def _largest(wanted: str, affine: int) -> str:
    """Return code that puts the bits of the largest magnitude of each group's block into `found`.

    In its first places; `wanted` says whether there is to be anything but zeros.  `affine`: that of
    numbers with a minus sign goes into `below`.
    """
    return f"""
    PRECSIM_SHARED word64 found[{THREADS}], below[{THREADS if affine else 1}];
    PRECSIM_SHARED precsim_part parts[{MOST_GROUPS}];
    const int lanes = 1 << lane_bits, groups = {THREADS} >> lane_bits;
    PRECSIM_THREADS(t)
        if (t < groups) parts[t] = precsim_part_of(PRECSIM_BLOCK * groups + t, {_NAMES});
    PRECSIM_WAIT
    PRECSIM_THREADS(t)
        int group = spread ? t & (groups - 1) : t >> lane_bits;
        int lane = spread ? t >> ({_THREAD_BITS} - lane_bits) : t & (lanes - 1);
        precsim_part part = parts[group];
        word64 largest = 0, lowest = 0;
        for (long long k = lane; {wanted} && k < part.size; k += lanes) {{
            word64 all = precsim_to_bits(x[precsim_place(part, k, columns)]);
            word64 bits = all & 0x7FFFFFFFFFFFFFFFull;
            if ({affine} && all >> 63) lowest = bits > lowest ? bits : lowest;
            else if (bits > largest) largest = bits;
        }}
        found[lane * groups + group] = largest;
        if ({affine}) below[lane * groups + group] = lowest;
    PRECSIM_WAIT
    for (int half = lanes / 2; half > 0; half /= 2) {{
        PRECSIM_THREADS(t)
            if (t < half * groups && found[t + half * groups] > found[t])
                found[t] = found[t + half * groups];
            if ({affine} && t < half * groups && below[t + half * groups] > below[t])
                below[t] = below[t + half * groups];
        PRECSIM_WAIT
    }}
"""


def source(real: str, rounding: str, affine: bool) -> str:
    """Return the code of the kernels `precsim_top` and `precsim_blocks` for "float" or "double".

    `rounding`: arguments of `precsim_round` for the elements.
    """
    kernels = _top(real, int(affine)) + _blocks(real, rounding, int(affine))
    return one_pass.ROUND + _PLACES + _SCALES + kernels


_PLACES = f"""
typedef struct {{ long long first, width, size; }} precsim_part;

/* Where a block of the array begins, how wide it is, and how large; 0 where there is none. */
PRECSIM precsim_part precsim_part_of(long long here, {_EXTENT}) {{
    precsim_part part;
    long long across = (columns + width - 1) / width, down = (rows + height - 1) / height;
    long long row = here / across % down * height, column = here % across * width;
    long long high = rows - row < height ? rows - row : height;
    part.width = columns - column < width ? columns - column : width;
    part.first = (here / across / down * rows + row) * columns + column;
    part.size = here < blocks ? high * part.width : 0;
    return part;
}}

PRECSIM long long precsim_place(precsim_part part, long long k, long long columns) {{
    if (part.width == part.size) return part.first + k;
    if (part.width == 1) return part.first + k * columns;
    if (part.size >> 32) return part.first + k / part.width * columns + k % part.width;
    return part.first + (word32)k / (word32)part.width * columns + (word32)k % (word32)part.width;
}}
"""
"""Where the blocks of an array lie, and their values."""


_SCALES = f"""
typedef struct {{ double block, tensor, divisor, zero; float factor; }} precsim_scale;

PRECSIM float precsim_factor(double amax, double largest) {{
    float factor = amax == 0 ? 1.0f : (float)(largest / amax);
    return factor > {FP32.max!r}f ? {FP32.max!r}f : factor;
}}

PRECSIM double precsim_stored(double ratio, int of_zeros, double at_least, {one_pass.PARAMETERS}) {{
    double scale = precsim_round(ratio, 0, {one_pass.ARGUMENTS});
    if (scale < at_least) scale = at_least;
    if ((flags & {one_pass.INF}) && of_zeros) return 1.0;
    return scale <= {FP32.max!r} ? scale : precsim_from_bits(0x7FF8000000000000ull);
}}

/* `below` is the largest magnitude with a minus sign of an affine block; `whole`: the block is all. */
PRECSIM precsim_scale precsim_scale_of(word64 found, word64 below, word64 top_found, int whole,
                                       {PARAMETERS}) {{
    const word64 infinity = 0x7FF0000000000000ull;
    const double none = precsim_from_bits(0x7FF8000000000000ull);
    double amax = found < infinity ? precsim_from_bits(found) : none;
    double top = precsim_from_bits(top_found), low_end = -precsim_from_bits(below), binade, span;
    float of_tensor, block;
    precsim_scale scale;
    scale.tensor = 1.0;
    scale.zero = 0.0;
    scale.factor = 0.0f;
    if (amax < amax_min) amax = amax_min;
    if (kind >= {FACTOR} && amax > {FP32.max!r}) amax = none;
    if (whole) top = amax == amax ? amax : 0;
    switch (kind) {{
    case {RATIO}:
    case {FACTOR_OF_SCALE}:
        scale.block = precsim_stored(amax / most, amax == 0, smallest_block, {_SCALE});
        if (kind == {FACTOR_OF_SCALE}) scale.factor = precsim_factor(scale.block, 1.0);
        break;
    case {POWER}:
    case {CLIPPED_POWER}:
        binade = amax == amax ? precsim_from_bits(precsim_to_bits(amax) & infinity) : none;
        scale.block = binade * unit;
        if (threshold < 2 && amax > binade * threshold) scale.block += scale.block;
        if (kind == {POWER}) {{
            scale.block = precsim_stored(scale.block, amax == 0, smallest_block, {_SCALE});
        }} else {{
            if (scale.block < smallest_block) scale.block = smallest_block;
            if (scale.block > largest_block) scale.block = largest_block;
        }}
        break;
    case {TWO_LEVELS}:
        scale.tensor = precsim_stored(top / unit, top == 0, smallest_tensor, {_TENSOR});
        scale.block = precsim_stored(amax / (most * scale.tensor), amax == 0, smallest_block, {_SCALE});
        break;
    case {AFFINE}:
        span = precsim_from_bits(found) - low_end;
        if (precsim_to_bits(span) >= infinity) span = none; /* it would saturate as a scale */
        scale.block = precsim_stored(span / most, span == 0, smallest_block, {_SCALE});
        scale.zero = low - rint(low_end / scale.block);
        if (scale.zero < low) scale.zero = low;
        if (scale.zero > high) scale.zero = high;
        if (scale.zero != scale.zero) scale.zero = 0;
        break;
    case {TWO_FACTORS}:
        of_tensor = precsim_factor(top, unit);
        block = (float)amax * (of_tensor * (1.0f / (float)most));
        block = (float)precsim_round(block, 0, {_SCALE});
        scale.tensor = 1.0f / of_tensor;
        scale.block = block;
        scale.factor = 1.0f / (block * (float)scale.tensor);
        if (scale.factor > {FP32.max!r}f) scale.factor = {FP32.max!r}f;
        break;
    default:
        scale.factor = kind == {GIVEN} ? (float)factor : precsim_factor(amax, most);
        scale.block = 1.0f / scale.factor;
    }}
    scale.divisor = scale.block * scale.tensor;
    if (scale.divisor == 0) scale.divisor = 2.2250738585072014e-308;
    return scale;
}}
"""
"""How the ends of a block become its scale."""


def _top(real: str, affine: int) -> str:
    """Return the code of the pass before the others, for scales that depend on the whole tensor."""
    below = "below[t]" if affine else "0"
    return f"""
/* Raise `top` to the largest magnitude of all blocks; `drops`: of those that have a scale. */
PRECSIM_KERNEL precsim_top(const {real} *x, word64 *top, int drops, double amax_min, double limit,
                           {SHAPE}) {{
{_largest("1", affine)}
    PRECSIM_THREADS(t)
        if (t < groups && PRECSIM_BLOCK * groups + t < blocks) {{
            double amax = precsim_from_bits(found[t]);
            if (drops && amax < amax_min) amax = amax_min;
            if (!drops || amax <= limit) PRECSIM_RAISE(top, precsim_to_bits(amax));
            if ({affine}) PRECSIM_RAISE(top + 1, {below});
        }}
    PRECSIM_WAIT
}}
"""


def _blocks(real: str, rounding: str, affine: int) -> str:
    """Return the code of the pass that makes the scales, and rounds by them."""
    below = "below[t]" if affine else "0"
    return f"""
/* Round x to `out`; `whole`: the scale of all values follows from `top`. */
PRECSIM_KERNEL precsim_blocks(const {real} *x, {real} *out, const word32 *words, int draws,
                              const word64 *top, int whole, {SHAPE},
                              {PARAMETERS}) {{
    PRECSIM_SHARED precsim_scale scales[{MOST_GROUPS}];
{_largest("!whole", affine)}
    PRECSIM_THREADS(t)
        if (t < groups)
            scales[t] = precsim_scale_of(whole ? top[0] : found[t], whole ? top[{affine}] : {below},
                                         top[0], whole, {_ALL});
    PRECSIM_WAIT
    PRECSIM_THREADS(t)
        int group = spread ? t & (groups - 1) : t >> lane_bits;
        int lane = spread ? t >> ({_THREAD_BITS} - lane_bits) : t & (lanes - 1);
        precsim_part part = parts[group];
        precsim_scale scale = scales[group];
        for (long long k = lane; k < part.size; k += lanes) {{
            long long i = precsim_place(part, k, columns);
            word32 word = draws ? words[i] : 0;
            if (kind >= {FACTOR}) {{
                float product = (float)x[i] * scale.factor;
                {real} element = ({real})precsim_round(product, word, {rounding});
                {real} value = element * ({real})scale.block;
                out[i] = value * ({real})scale.tensor;
            }} else {{
                double quotient = x[i] / scale.divisor;
                if (quotient == 0 && x[i] != 0) quotient = x[i] > 0 ? lost : -lost;
                double element = precsim_round(quotient, word, {rounding});
                if (element < low - scale.zero) element = low - scale.zero;
                if (element > high - scale.zero) element = high - scale.zero;
                out[i] = ({real})(element * (scale.block * scale.tensor));
            }}
        }}
    PRECSIM_WAIT
}}
"""
