"""Running totals that are rounded after every addition, or every few.

A total that is rounded after each product is a loop over the contraction, whatever computes it.
It goes over a part of the result that stays in the cache, whole arrays at a time; or, where the
compiled kernels are in use, over one element after the other, in registers.  What is added up
several at a time comes from BLAS, and the total is rounded after each of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precsim.backend import compiled, one_pass
from precsim.backend import cupy as device
from precsim.engine.precision import Accumulator
from precsim.formats.arrays import array_module
from precsim.formats.format import Format
from precsim.formats.kernels import round_quietly
from precsim.formats.modes import Mode, Overflow, Rounding, stochastic
from precsim.formats.quantize import random_words
from precsim.formats.registry import format
from precsim.formats.scratch import BLOCK_BYTES, SLOT_BYTES, scratch

Array = npt.NDArray[Any]
Draw = Callable[[tuple[int, ...], int], Array]


class _Rule(NamedTuple):
    """How a total gets into its format."""

    fmt: Format
    rounding: Mode
    overflow: Overflow


def _rules(unit: Accumulator) -> tuple[_Rule, _Rule]:
    """Return the rules of the inner total and of the outer one."""
    found = []
    for name, rounding in ((unit.format, unit.rounding), (unit.outer, Rounding.NEAREST)):
        fmt = format(name)
        assert isinstance(fmt, Format)
        overflow = Overflow.IEEE if fmt.has_nan else Overflow.SATURATE
        found.append(_Rule(fmt, rounding, overflow))
    return found[0], found[1]


def add_up(
    unit: Accumulator,
    length: int,
    part: Callable[[int, int], Array],
    draw: Draw | None,
    out: Array | None = None,
) -> Array:
    """Return the total of ``part(start, stop)`` over 0 .. length, rounded at each step.

    The arrays that `part` returns may be views, or the same memory each time, but not `out`, which
    the total is written to where it is given, contiguous.  `draw(shape, start)` gives the random
    words for totals that round stochastically.
    """
    with np.errstate(all="ignore"):  # said once: saying so takes as long as rounding a thousand
        return _add_up(unit, length, part, draw, out)


def _add_up(
    unit: Accumulator,
    length: int,
    part: Callable[[int, int], Array],
    draw: Draw | None,
    out: Array | None,
) -> Array:
    inner, outer = _rules(unit)
    total, sum_of_chunks = (_room(out), out) if unit.chunk else (out, None)
    from_zero = True
    rounded = 0  # elements that drew random words so far
    for start in range(0, length, unit.every):
        stop = min(start + unit.every, length)
        term = part(start, stop)
        words = None
        if stochastic(unit.rounding):
            words = random_words(term, None if draw is None else draw(term.shape, rounded))
            rounded += term.size
        first = start == 0 or (unit.chunk > 0 and start % unit.chunk == 0)
        total = _add(total, term, inner, words, from_zero=first)
        if unit.chunk and (stop % unit.chunk == 0 or stop == length):
            sum_of_chunks = _add(sum_of_chunks, total, outer, from_zero=from_zero)
            from_zero = False
    found = sum_of_chunks if unit.chunk else total
    assert found is not None
    return found


def _room(out: Array | None) -> Array | None:
    """Return memory for another total like this one; None: it is not known what that is like."""
    return None if out is None else scratch("total", out.reshape(-1)).reshape(out.shape)


def _add(
    total: Array | None,
    term: Array,
    rule: _Rule,
    words: Array | None = None,
    *,
    from_zero: bool = False,
) -> Array:
    """Add a term to the total, in place, and round, a block at a time.

    `from_zero`: whatever the total was, it is zero now; None is a new one.
    """
    xp = array_module(term)
    if total is None:
        total = xp.empty(term.shape, term.dtype)
    term = xp.ascontiguousarray(term)
    if xp is np and compiled.add(total, term, *rule, words, from_zero=from_zero):
        return total
    flat, added = total.reshape(-1), term.reshape(-1)
    drawn = None if words is None else words.reshape(-1)
    block = SLOT_BYTES // total.dtype.itemsize if xp is np else max(total.size, 1)
    for start in range(0, flat.size, block):
        piece = slice(start, start + block)
        here = flat[piece]
        xp.add(0.0 if from_zero else here, added[piece], out=here)
        round_quietly(here, here, *rule, None if drawn is None else drawn[piece])
    return total


def multiply(unit: Accumulator, a: Array, b: Array, out: Array, draw: Draw | None) -> None:
    """Write the product of (S, M, K) and (S, K, N), rounded after each product, to `out`.

    Bits and random words are those of `add_up` over ``a[..., k:k+1] @ b[:, k:k+1]``.  On a device
    there are no random words: a total that rounds stochastically is left to `add_up`.
    """
    if array_module(out) is not np:
        inner, outer = (one_pass.rule(*found) for found in _rules(unit))
        xp = array_module(out)
        left, right = xp.ascontiguousarray(a), xp.ascontiguousarray(b)
        device.multiply(left, right, out, unit.chunk, inner, outer)
        return
    _, height, width = out.shape
    with np.errstate(all="ignore"):
        for matrices, rows in _slabs(out):
            total = out[matrices, rows]
            first = (matrices.start * height + rows.start) * width
            words = _words(total, first, out.size, draw) if stochastic(unit.rounding) else None
            _multiply_slab(unit, a[matrices, rows], b[matrices], total, words)


def _words(total: Array, first: int, size: int, draw: Draw | None) -> Callable[[int], Array]:
    """Return the function from a step to the words for a piece of a result of this size."""
    return lambda step: random_words(total, draw and draw(total.shape, step * size + first))


def _slabs(out: Array) -> Iterator[tuple[slice, slice]]:
    """Cut a stack of matrices into contiguous pieces that stay in the cache: matrices, or rows."""
    count, height, width = out.shape
    room = BLOCK_BYTES // out.dtype.itemsize
    rows = max(1, min(height, room // max(width, 1)))
    matrices = max(1, room // max(height * width, 1)) if rows == height else 1
    for matrix in range(0, count, matrices):
        for row in range(0, height, rows):
            yield slice(matrix, matrix + matrices), slice(row, row + rows)


def _multiply_slab(
    unit: Accumulator, a: Array, b: Array, out: Array, words: Callable[[int], Array] | None
) -> None:
    """Compute one piece of the product: chunk by chunk, if the unit has a second total."""
    inner, outer = _rules(unit)
    length = a.shape[-1]
    total = scratch("total", out) if unit.chunk else out
    out[...] = 0
    for start in range(0, length, unit.chunk or length):
        stop = min(start + (unit.chunk or length), length)
        total[...] = 0
        _multiply_steps(a, b, total, inner, range(start, stop), words)
        if unit.chunk:
            _add(out, total, outer)


def _multiply_steps(
    a: Array,
    b: Array,
    total: Array,
    rule: _Rule,
    steps: range,
    words: Callable[[int], Array] | None,
) -> None:
    """Add the products of these places of the contraction to the total, rounding after each."""
    chunk = slice(steps.start, steps.stop)
    if words is None and compiled.multiply(a[..., chunk], b[:, chunk], total, *rule, None):
        return
    term = scratch("term", total)
    for k in steps:
        drawn = None if words is None else words(k)
        step = slice(k, k + 1)
        if drawn is not None and compiled.multiply(a[..., step], b[:, step], total, *rule, drawn):
            continue
        np.multiply(a[..., k, None], b[:, k, None, :], out=term)
        term += 0.0  # a product of -0 is 0, as in BLAS, which adds it to 0
        total += term
        round_quietly(total, total, *rule, drawn)
