"""Totals that are rounded after every addition, compiled by Numba (`precsim.engine.accumulate`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from precsim.backend.fused import (
    BITS,
    EXACT,
    NO_WORDS,
    STEPS,
    by_bits,
    by_steps,
    choose,
    compiled,
    in_float64,
    unpack,
)
from precsim.backend.fused_bits import as_bits, as_float, in_wide_vectors, like
from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow


def multiply(
    a: Array,
    b: Array,
    total: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None,
) -> bool:
    """Add the product of (S, M, K) and (S, K, N) to `total`, rounding it after every addition.

    A mode that draws random words has those for one addition, K = 1.  False: there is no kernel.
    """
    found = choose(total.dtype, fmt, rounding, overflow)
    if found is None:
        return False
    run = product_kernel(found.how, found.mode, found.kind)
    left, right = np.ascontiguousarray(a), np.ascontiguousarray(b)
    drawn = NO_WORDS.reshape(0, 0, 0) if words is None else words
    run(left, right, total.view(found.uint), drawn, found.numbers)
    return True


def add(
    total: Array,
    term: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None,
    *,
    from_zero: bool,
) -> bool:
    """Add a term to the total, or to zero, and round it; both contiguous.  False: no kernel."""
    found = choose(total.dtype, fmt, rounding, overflow)
    if found is None:
        return False
    run = sum_kernel(found.how, found.mode, found.kind)
    drawn = NO_WORDS if words is None else words.reshape(-1)
    run(term.reshape(-1), total.reshape(-1).view(found.uint), drawn, found.numbers, from_zero)
    return True


@cache
def product_kernel(how: int, mode: int, kind: int) -> Callable[..., None]:
    """Return ``run(left, right, total, words, numbers)``; `total` is bits, left and right floats."""
    drawn = mode >= EXACT

    @compiled
    def run(left: Any, right: Any, total: Any, words: Any, packed: Any) -> None:
        in_wide_vectors()
        c = unpack(packed)
        stack, rows, columns = total.shape
        for s in range(stack):
            for i in range(rows):
                for k in range(left.shape[2]):
                    factor = left[s, i, k]
                    for j in range(columns):
                        zero = like(0.0, factor)
                        term = factor * right[s, k, j] + zero
                        bits = as_bits(as_float(total[s, i, j]) + term)
                        word = words[s, i, j] if drawn else np.uint32(0)
                        if how == STEPS:
                            total[s, i, j] = by_steps(bits, word, c, mode, kind)
                        elif how == BITS:
                            total[s, i, j] = by_bits(bits, word, c, mode, kind)
                        else:
                            total[s, i, j] = in_float64(bits, word, c, mode, kind)

    return run  # type: ignore[no-any-return]


@cache
def sum_kernel(how: int, mode: int, kind: int) -> Callable[..., None]:
    """Return ``run(term, total, words, numbers, from_zero)``; `total` is bits; all are flat."""
    drawn = mode >= EXACT

    @compiled
    def run(term: Any, total: Any, words: Any, packed: Any, from_zero: Any) -> None:
        in_wide_vectors()
        c = unpack(packed)
        for i in range(total.size):
            so_far = as_float(total[i])
            so_far = like(0.0, so_far) if from_zero else so_far
            bits = as_bits(so_far + term[i])
            word = words[i] if drawn else np.uint32(0)
            if how == STEPS:
                total[i] = by_steps(bits, word, c, mode, kind)
            elif how == BITS:
                total[i] = by_bits(bits, word, c, mode, kind)
            else:
                total[i] = in_float64(bits, word, c, mode, kind)

    return run  # type: ignore[no-any-return]
