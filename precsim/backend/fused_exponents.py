"""Counting exponents in compiled loops: parts of `precsim.backend.fused_counts`.

A table of counts takes one addition an element, and each waits for the one before.  Here the bits of
64 exponents are put side by side, all lowest bits in one word, and so on: bit planes.  Where the
planes agree with the bits of an exponent, there it is, and processors count the bits of a word in one
instruction; so 64 elements, or eight times as many, are counted together, once an exponent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from precsim.backend.fused_bits import (
    PLANE,
    add_sixteen,
    in_wide_vectors,
    inlined,
    like,
    part,
    set_planes,
)

REACH = 1 << 7
"""Exponents, from the smallest on, that planes tell apart from all others."""
NONE = np.uint64(0)
ALL = ~NONE
ZEROS = (NONE,) * 16


@part
def add_exponents(bits: Any, low: Any, top: Any, shift: Any, found: Any, first: Any) -> None:
    """Count the exponent fields of a block's normal numbers, which lie from `low` to `top`, as bits.

    Field `first` and those below go to the first of `found`, those beyond its end to the last.
    """
    whole = bits.size // PLANE
    planes = np.empty((8, whole), np.uint64)
    start: Any = max(np.int64(low >> shift), 1)
    stop: Any = np.int64(top >> shift) + 1
    for base in range(start, stop, REACH):
        for column in range(whole):
            set_planes(bits, column * PLANE, like(base, bits[0]), planes, column)
        for sixteen in range(base, min(base + REACH, stop), 16):
            place = sixteen
            for total in _sixteen(planes, sixteen - base):
                if place < stop:
                    _add(total, place, found, first)
                place += 1
    last = like(ALL, bits[0]) >> shift >> like(1, bits[0])
    for i in range(whole * PLANE, bits.size):
        field = np.int64((bits[i] >> shift) & last)
        if start <= field < stop:
            _add(1, field, found, first)


@inlined
def _add(total: Any, field: Any, found: Any, first: Any) -> None:
    found[min(max(field - first, 0), found.size - 1)] += total


@part
def _sixteen(planes: Any, number: Any) -> Any:
    """Count those with each of 16 numbers, from one on that 16 divides."""
    in_wide_vectors()
    e, f, g = _opposite(number, 4), _opposite(number, 5), _opposite(number, 6)
    totals = ZEROS
    for i in range(planes.shape[1]):
        some = ~planes[7, i] & (planes[6, i] ^ g) & (planes[5, i] ^ f) & (planes[4, i] ^ e)
        totals = add_sixteen(totals, some, planes[3, i], planes[2, i], planes[1, i], planes[0, i])
    return totals


@inlined
def _opposite(number: Any, k: Any) -> Any:
    """Return all bits, or none where bit k is set: `plane ^ that` has a bit where the plane agrees."""
    return NONE if (number >> k) & 1 else ALL


@part
def add_subnormals(x: Any, found: Any, lowest: Any) -> None:
    """Add the exponents of a block's subnormals, which float32's are not in their fields."""
    tiny = np.finfo(x.dtype).tiny
    for i in range(x.size):
        size = abs(x[i])
        if 0 < size < tiny:
            exponent = math.frexp(np.float64(size))[1] - 1
            found[min(max(exponent - lowest, 0), found.size - 1)] += 1
