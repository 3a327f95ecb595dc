"""Counting exponents in compiled loops: parts of `precsim.backend.fused_counts`.

A processor counts one number in the time in which it stores one, so neighbours are counted together,
as one number of 16 bits; what a table of 65,536 of those says is read only where something can be.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from precsim.backend.fused_bits import like, part

FEW = 1 << 10
"""Elements of an array that is smaller than the tables."""


class _Tables(threading.local):
    """Zeros, in which exponents are counted; each thread has its own."""

    def __init__(self) -> None:
        self.pairs = np.zeros((2, 1 << 16), np.uint32)
        self.single = np.zeros((4, 1 << 11), np.uint32)


tables = _Tables()


@part
def add_one_by_one(bits: Any, shift: Any, found: Any, first: Any) -> None:
    """Count the exponent fields of a small array's normal numbers, without a table."""
    last = like(like(0, shift) - like(1, shift), shift) >> shift >> like(1, shift)
    for i in range(bits.size):
        field = np.int64((bits[i] >> shift) & last)
        if 0 < field < last:
            found[min(max(field - first, 0), found.size - 1)] += 1


@part
def add_pairs(bits: Any, places: Any, table: Any) -> None:
    """Count a block's exponent fields, neighbours together, in two tables in turn.

    In one table it would wait for itself where neighbours are alike.
    """
    one, low, high = np.uint32(1), np.uint64(0xFF), np.uint64(0xFF00)
    even = bits.size & ~1
    pairs = bits[:even].view(np.uint64)
    for i in range(pairs.size):
        v = pairs[i]
        places[i] = np.uint16(((v >> np.uint64(23)) & low) | ((v >> np.uint64(47)) & high))
    half = pairs.size // 2
    first, second = places[:half], places[half : 2 * half]
    for i in range(half):
        table[0, first[i]] += one
        table[1, second[i]] += one
    for i in range(2 * half, pairs.size):
        table[0, places[i]] += one
    if even != bits.size:
        table[0, (bits[even] >> 23) & 0xFF] += one


@part
def read_pairs(table: Any, low: Any, top: Any, found: Any, first: Any) -> None:
    """Add the fields of normal numbers from `low` to `top` to `found`, and clear the tables.

    In them are also field 0 and, of what is not finite, field 255.
    """
    start: Any = max(np.int64(low >> 23), 1)
    stop = np.int64(top >> 23) + 1
    times = np.zeros(256, np.uint32)
    for field in range(start - 2, stop):
        left = 0 if field == start - 2 else (255 if field == start - 1 else field)
        for j in range(2):
            row = table[j, left << 8 : (left + 1) << 8]
            total = row[0] + row[255] + _move(row[start:stop], times[start:stop])
            times[left] += total
            row[0] = row[255] = np.uint32(0)
    _add_fields(times[start:stop], start - first, found)


@part
def _move(row: Any, times: Any) -> Any:
    """Add a row of a table to `times`, clear it, and return its sum."""
    total = np.uint32(0)
    for i in range(row.size):
        total = np.uint32(total + row[i])
        times[i] += row[i]
        row[i] = np.uint32(0)
    return total


@part
def _add_fields(times: Any, place: Any, found: Any) -> None:
    """Add how often fields came to `found`, from a place on; its ends take what is beyond them."""
    for i in range(times.size):
        found[min(max(place + i, 0), found.size - 1)] += times[i]


@part
def add_single(bits: Any, table: Any) -> None:
    """Count a block's exponent fields, in four tables in turn."""
    one, mask = np.uint32(1), np.uint64(0x7FF)
    for i in range(bits.size):
        table[i & 3, (bits[i] >> np.uint64(52)) & mask] += one


@part
def read_single(table: Any, low: Any, top: Any, found: Any, first: Any) -> None:
    """Add the fields of normal numbers from `low` to `top` to `found`, and clear the tables."""
    start: Any = max(np.int64(low >> np.uint64(52)), 1)
    stop = np.int64(top >> np.uint64(52)) + 1
    for j in range(4):
        row = table[j]
        _add_fields(row[start:stop], start - first, found)
        row[start:stop] = np.uint32(0)
        row[0] = row[0x7FF] = np.uint32(0)


@part
def add_subnormals(x: Any, found: Any, lowest: Any) -> None:
    """Add the exponents of a block's subnormals, which float32's are not in their fields."""
    tiny = np.finfo(x.dtype).tiny
    for i in range(x.size):
        size = abs(x[i])
        if 0 < size < tiny:
            exponent = math.frexp(np.float64(size))[1] - 1
            found[min(max(exponent - lowest, 0), found.size - 1)] += 1
