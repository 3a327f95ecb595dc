"""Counting what rounding did in C, in one pass over a device's memory, together with the rounding.

What is counted is what `precsim.observe.counters.OpCounts` says.  Every thread counts its own
elements; a block of threads adds up what they found, and hands it over.  The bits are always the
same: counts are integers, the ends are maxima, and the sums of squares are added in float64 in an
order that follows from the size of the array alone, first along a thread's elements, then pairwise
in a block, and the sums of the blocks one after the other on the host.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precsim.backend.grid import THREADS
from precsim.backend.one_pass import ROUND, ROUND_FLOAT, parameters

NAMES = (
    "zeros", "flushed", "subnormal", "overflowed", "saturated", "nan", "nonfinite_in", "inexact",
)  # fmt: skip
"""What is counted, in the order of the code."""

COPIES = THREADS // 32
"""Histograms of a block, one for each group of threads that would wait for each other at one."""
MOST_BLOCKS, EACH = 1024, 4
"""Blocks of the largest array, and elements that a thread has at least in an array that has more."""


class Wanted(NamedTuple):
    """What is to be counted, of a format."""

    normal: float  # its smallest normal value; 0: results are never subnormal
    largest: float  # its largest; inf: none saturates
    factor: float  # what a number is multiplied with before it is larger; 0: no factor is given
    lowest: int  # exponent of the histogram's first bin
    bins: int
    histogram: bool  # without, its bins stay empty


class Counted(NamedTuple):
    """What was counted; the names are those of `precsim.observe.counters.OpCounts`."""

    zeros: int
    flushed: int
    subnormal: int
    overflowed: int
    saturated: int
    nan: int
    nonfinite_in: int
    inexact: int
    amax: float
    amin: float
    square: float
    error: float
    histogram: npt.NDArray[np.int64]


def blocks(size: int) -> int:
    """Return how many blocks of threads count an array of a size."""
    return min(max(-(-size // (THREADS * EACH)), 1), MOST_BLOCKS)


def room(size: int, bins: int) -> int:
    """Return how many 64-bit words, zero at first, the kernel writes what it finds to."""
    return len(NAMES) + 2 + bins + 2 * blocks(size)


def read(words: npt.NDArray[np.uint64], bins: int) -> Counted:
    """Return what the kernel wrote."""
    first = len(NAMES) + 2
    top, low = words[first - 2 : first]
    amax, amin = np.array([top, ~low]).view(np.float64).tolist()
    square, error = words[first + bins :].view(np.float64).reshape(-1, 2).cumsum(axis=0)[-1]
    counts = dict(zip(NAMES, words[: len(NAMES)].tolist(), strict=True))
    return Counted(
        **counts,
        amax=amax,
        amin=amin if low else inf,
        square=float(square),
        error=float(error),
        histogram=words[first : first + bins].astype(np.int64),
    )


def largest(real: str) -> str:
    """Return the code of `precsim_largest`: the bits of the largest magnitude that is a number."""
    return f"""{ROUND}
PRECSIM_KERNEL precsim_largest(const {real} *x, long long size, word64 *found) {{
    PRECSIM_SHARED word64 top[1];
    PRECSIM_THREADS(t)
        if (t == 0) top[0] = 0;
    PRECSIM_WAIT
    PRECSIM_THREADS(t)
        {real} largest = 0;
        for (long long i = PRECSIM_BLOCK * {THREADS} + t; i < size; i += PRECSIM_BLOCKS * {THREADS})
            if (fabs(x[i]) > largest) largest = fabs(x[i]);
        PRECSIM_RAISE(&top[0], precsim_to_bits(largest));
    PRECSIM_WAIT
    PRECSIM_THREADS(t)
        if (t == 0) PRECSIM_RAISE(&found[0], top[0]);
    PRECSIM_WAIT
}}
"""


_MAGNITUDE = """
PRECSIM word64 precsim_magnitude(double value) {
    union { word64 bits; double value; } both;
    both.value = value;
    return both.bits & 0x7FFFFFFFFFFFFFFFull;
}
"""


def _of_one(real: str, lowest: int, bins: int) -> str:
    """Return the code by which a thread counts one number, x, and what became of it, r."""
    return f"""
            word64 size_in = precsim_magnitude(x), size_out = precsim_magnitude(r);
            int finite_in = size_in < infinity, finite_out = size_out < infinity;
            zeros += size_in == 0;
            flushed += size_in != 0 && size_out == 0;
            nan += size_out > infinity;
            nonfinite_in += !finite_in;
            overflowed += finite_in && !finite_out;
            inexact += x != r && !(size_in > infinity && size_out > infinity);
            subnormal += size_out != 0 && size_out < precsim_magnitude(normal_from);
            if (factor)
                saturated += finite_in && precsim_magnitude(({real})x * ({real})factor) > precsim_magnitude(top_value);
            else
                saturated += finite_in && size_in > precsim_magnitude(top_value)
                             && size_out == precsim_magnitude(top_value);
            if (finite_in && finite_out) {{
                double difference = r - x;
                square += x * x;
                error += difference * difference;
            }}
            if (finite_in && size_in != 0) {{
                int place = (int)(size_in >> 52) - {1023 + lowest};
                place = place < 0 ? 0 : place > {bins - 1} ? {bins - 1} : place;
                if (size_in > top) top = size_in;
                if (~size_in > low) low = ~size_in;
                if (histogram) PRECSIM_ADD(&places[t / 32 * {bins} + place], 1u);
            }}"""


def source(real: str, lowest: int, bins: int, rounding: str) -> str:
    """Return the code of the kernel `precsim_count` for arrays of a carrier, "float" or "double".

    The histogram has `bins` exponents, from `lowest` on; smaller and larger ones count at its ends.
    With `rounding`, arguments of `precsim_round`, it rounds the numbers itself, and writes them to
    `after`; "" if it does not.
    """
    after = f"{real} *after, const word32 *words, int draws, {parameters(real)}"
    suffix, code = ("_float", ROUND_FLOAT) if real == "float" else ("", ROUND)
    rounded = f"precsim_round{suffix}(before[i], draws ? words[i] : 0, {rounding})"
    return f"""
{code if rounding else ""}{_MAGNITUDE}
PRECSIM_KERNEL precsim_count(const {real} *before, long long size, double normal_from, double top_value,
                             double factor, int histogram, word64 *found,
                             {after if rounding else f"const {real} *after"}) {{
    PRECSIM_SHARED word32 counts[{len(NAMES)}], places[{COPIES * bins}];
    PRECSIM_SHARED word64 ends[2];
    PRECSIM_SHARED double squares[{THREADS}], errors[{THREADS}];
    const word64 infinity = 0x7FF0000000000000ull;
    double *sums = (double *)(found + {len(NAMES) + 2 + bins});

    PRECSIM_THREADS(t)
        for (int k = t; k < {COPIES * bins}; k += {THREADS}) places[k] = 0;
        if (t < {len(NAMES)}) counts[t] = 0;
        if (t < 2) ends[t] = 0;
    PRECSIM_WAIT

    PRECSIM_THREADS(t)
        word32 zeros = 0, flushed = 0, subnormal = 0, overflowed = 0, saturated = 0, nan = 0;
        word32 nonfinite_in = 0, inexact = 0;
        word64 top = 0, low = 0;
        double square = 0, error = 0;
        for (long long i = PRECSIM_BLOCK * {THREADS} + t; i < size; i += PRECSIM_BLOCKS * {THREADS}) {{
            double x = before[i];
            double r = {rounded if rounding else "after[i]"};
            {f"after[i] = ({real})r;" if rounding else ""}{_of_one(real, lowest, bins)}
        }}
        squares[t] = square;
        errors[t] = error;
        {" ".join(f"PRECSIM_ADD(&counts[{k}], {name});" for k, name in enumerate(NAMES))}
        PRECSIM_RAISE(&ends[0], top);
        PRECSIM_RAISE(&ends[1], low);
    PRECSIM_WAIT

    for (int half = {THREADS // 2}; half > 0; half /= 2) {{
        PRECSIM_THREADS(t)
            if (t < half) {{
                squares[t] += squares[t + half];
                errors[t] += errors[t + half];
            }}
        PRECSIM_WAIT
    }}

    PRECSIM_THREADS(t)
        if (t < {len(NAMES)} && counts[t]) PRECSIM_ADD(&found[t], (word64)counts[t]);
        if (t < 2) PRECSIM_RAISE(&found[{len(NAMES)} + t], ends[t]);
        for (int k = t; histogram && k < {bins}; k += {THREADS}) {{
            word64 sum = 0;
            for (int copy = 0; copy < {COPIES}; copy++) sum += places[copy * {bins} + k];
            if (sum) PRECSIM_ADD(&found[{len(NAMES) + 2} + k], sum);
        }}
        if (t == 0) {{
            sums[2 * PRECSIM_BLOCK] = squares[0];
            sums[2 * PRECSIM_BLOCK + 1] = errors[0];
        }}
    PRECSIM_WAIT
}}
"""
