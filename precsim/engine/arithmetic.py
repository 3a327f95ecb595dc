"""Matmuls and sums with the accumulator that the policy asks for.

A dot product is exact products and a running total; what the total is kept in decides how much of
it survives (Wang et al. 2018; the "14 bits" of DeepSeek-V3, section 3.3.2).  With no accumulator
named, the total is as wide as the carrier and BLAS computes it; `accumulate.py` has the narrow ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from precsim.engine.accumulate import add_up, multiply
from precsim.engine.pool import Pool
from precsim.engine.precision import Accumulator
from precsim.formats.modes import stochastic
from precsim.formats.quantize import quantize
from precsim.formats.scratch import SLOT_BYTES

Array = npt.NDArray[Any]


class Arithmetic(NamedTuple):
    """What an op's forward computes with: array module, carrier dtype, accumulator and memory.

    `draw(shape, start)` gives the random words for accumulators that round stochastically.
    """

    xp: Any
    carrier: np.dtype[Any]
    accumulator: Accumulator | None = None
    draw: Callable[..., Array] | None = None
    pool: Pool | None = None

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return a new array of the carrier's, for a result to be written into."""
        if self.pool is None or self.xp is not np:
            return self.xp.empty(shape, self.carrier)  # type: ignore[no-any-return]
        return self.pool.empty(shape, self.carrier)

    def like(self, x: Array, *others: Array) -> Array:
        """Return a new array of the shape to which the operands broadcast."""
        shape = x.shape
        for other in others:
            if other.shape != shape and other.shape:  # a number takes any shape
                shape = np.broadcast_shapes(shape, other.shape)
        return self.empty(shape)

    def matmul(self, a: Array, b: Array) -> Array:
        """Multiply (..., M, K) by (K, N) or (..., K, N)."""
        folded = a.ndim > 2 and b.ndim == 2
        left = a.reshape(prod(a.shape[:-1]), a.shape[-1]) if folded else a
        if self.accumulator is None or left.shape[-1] == 0:
            product = self.empty(_product_shape(left.shape, b.shape))
            self.xp.matmul(left, self._in_rows(b), out=product)
        else:
            product = self._multiply(left, b)
        return product.reshape(*a.shape[:-1], b.shape[-1]) if folded else product

    def _in_rows(self, b: Array) -> Array:
        """Return a stack of matrices that are transposed views as one with its rows in order.

        BLAS multiplies small matrices without packing them first, and by transposed ones takes
        twice as long, or longer; the copy costs a tenth of that.
        """
        if b.ndim == 2 or self.xp is not np or b.strides[-1] <= b.strides[-2]:
            return b
        rows = self.empty(b.shape)
        rows[...] = b
        return rows

    def sum(self, x: Array, axis: int | tuple[int, ...] | None, *, keepdims: bool = False) -> Array:
        """Sum along one axis, several, or all of them."""
        if self.accumulator is None or x.size == 0:
            return self.xp.asarray(x.sum(axis=axis, keepdims=keepdims))  # type: ignore[no-any-return]
        first = normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim)
        kept = [a for a in range(x.ndim) if a not in first]
        terms = x.transpose(*first, *kept).reshape(-1, *(x.shape[a] for a in kept))
        one_by_one = self.accumulator.every == 1
        total = add_up(
            self.accumulator,
            terms.shape[0],
            lambda i, end: terms[i] if one_by_one else self.xp.asarray(terms[i:end].sum(axis=0)),
            self.draw,
        )
        shape = tuple(1 if a in first else n for a, n in enumerate(x.shape))
        return total.reshape(shape) if keepdims else total

    def scatter_add(self, x: Array, places: Array, rows: int) -> Array:
        """Add vector i of x (N, C) to row ``places[i]`` of (rows, C); rows without one are 0."""

        def part(start: int, stop: int) -> Array:
            total = self.xp.zeros((rows, x.shape[1]), x.dtype)
            self.xp.add.at(total, places[start:stop], x[start:stop])
            return total  # type: ignore[no-any-return]

        if len(x) == 0:
            return part(0, 0)
        if self.accumulator is None:
            return _sum_groups(x, places, rows) if self.xp is np else part(0, len(x))
        return add_up(self.accumulator, len(x), part, self.draw)

    def keep(self, x: Array) -> Array:
        """Round to nearest what a kernel keeps between two passes over a row (a mean, a sum)."""
        if self.accumulator is None:
            return x
        return self.xp.asarray(quantize(x, self.accumulator.format))  # type: ignore[no-any-return]

    def _multiply(self, a: Array, b: Array) -> Array:
        """Multiply matrices, or stacks of them, with the accumulator."""
        unit, shape = self.accumulator, _product_shape(a.shape, b.shape)
        assert unit is not None
        product = self.empty(shape)
        if product.size == 0:
            return product
        if unit.every == 1 and (self.xp is np or not stochastic(unit.rounding)):
            left, right = (
                self.xp.broadcast_to(x, (*shape[:-2], *x.shape[-2:])).reshape(-1, *x.shape[-2:])
                for x in (a, b)
            )
            multiply(unit, left, right, product.reshape(-1, *shape[-2:]), self.draw)
            return product

        whole = self.xp is not np or stochastic(unit.rounding)  # words are drawn for all at once
        for slab in (slice(None),) if whole else _slabs(product):
            left, out = _at(slab, a, len(shape)), product[slab]
            right = b if len(shape) == 2 else _at(slab, b, len(shape))
            add_up(unit, a.shape[-1], self._products(left, right, out.shape), self.draw, out)
        return product

    def _products(self, a: Array, b: Array, shape: tuple[int, ...]) -> Callable[[int, int], Array]:
        """Return what multiplies a part of the contraction, into the same memory each time."""
        term = self.empty(shape)

        def part(start: int, stop: int) -> Array:
            self.xp.matmul(a[..., start:stop], b[..., start:stop, :], out=term)
            return term

        return part


def _slabs(product: Array) -> Iterator[slice]:
    """Cut the first axis into parts that stay in a cache: rows, or matrices of a stack."""
    step = max(1, SLOT_BYTES * len(product) // max(product.nbytes, 1))
    step -= step % 16 if step > 16 else 0  # whole numbers of the rows that BLAS takes at a time
    for start in range(0, len(product), step):
        yield slice(start, start + step)


def _at(slab: slice, x: Array, ndim: int) -> Array:
    """Return the slab of an operand, or all of it where it serves every one."""
    return x[slab] if x.ndim == ndim and len(x) > 1 else x


def _product_shape(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a product of stacks of matrices."""
    stack = left[:-2] if left[:-2] == right[:-2] else np.broadcast_shapes(left[:-2], right[:-2])
    return (*stack, left[-2], right[-1])


def _sum_groups(x: Array, places: Array, rows: int) -> Array:
    """Add the vectors of x (N, C) with the same place, one stretch of sorted ones after the other.

    (NumPy's `add.at` takes four times as long.)
    """
    order = places.argsort(kind="stable")
    sorted_places = places[order]
    starts = np.flatnonzero(np.diff(sorted_places, prepend=-1))
    total = np.zeros((rows, x.shape[1]), x.dtype)
    total[sorted_places[starts]] = np.add.reduceat(x[order], starts, axis=0)
    return total
