"""Where the blocks of an array lie.

Whatever the blocks are, an array is seen as (R, M, C, N): R x C blocks of M x N values, in memory
order, ragged ends padded with zeros (which change no amax).  A row is 1 x N, blocks along another
axis are M x 1, a tile is M x N, a tensor is one block.  So amax is a maximum over two axes, a scale
is broadcast over two axes, and nothing depends on how many blocks there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from precsim.formats.arrays import Array, array_module
from precsim.formats.scaled import ALL, Block
from precsim.formats.scratch import BLOCK_BYTES

Slab = tuple[slice, slice, slice, slice]


@dataclass(frozen=True)
class Tiling:
    """How the blocks of one shape lie; `grid` is the shape that an array of their scales has."""

    shape: tuple[int, ...]
    stack: tuple[int, int, int]  # the shape as (matrices, rows, columns)
    height: int
    width: int
    grid: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], block: Block) -> Tiling:
        """Lay blocks over a shape; raises `ValueError` for an axis that the shape does not have."""
        if not shape or block.height == ALL:
            size = math.prod(shape)
            return cls(shape, (1, 1, size), 1, max(size, 1), (1,) * len(shape))
        if block.height > 1:
            folded = (1, *shape) if len(shape) == 1 else shape
            *outer, rows, columns = folded
            height, width = min(block.height, max(rows, 1)), min(block.width, max(columns, 1))
            ends = (-(-rows // height), -(-columns // width))
            grid = (*outer, *ends) if len(shape) > 1 else ends[1:]
            return cls(shape, (math.prod(outer), rows, columns), height, width, grid)
        axis = _axis(block, len(shape))
        length = shape[axis]
        width = min(block.width or length, length) or 1
        blocks = -(-length // width) if block.width else 1
        grid = (*shape[:axis], blocks, *shape[axis + 1 :])
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        if axis == len(shape) - 1:
            return cls(shape, (1, before, length), 1, width, grid)
        return cls(shape, (before, length, after), width, 1, grid)

    @property
    def ragged(self) -> bool:
        """Whether some blocks are short, so that `view` has to copy and pad."""
        return bool(self.stack[1] % self.height or self.stack[2] % self.width)

    def view(self, x: Array) -> Array:
        """Return x, contiguous, as (R, M, C, N): itself, or a copy with zeros after ragged ends."""
        count, rows, columns = self.stack
        below, right = -rows % self.height, -columns % self.width
        stack = x.reshape(self.stack)
        if self.ragged:
            stack = array_module(x).pad(stack, ((0, 0), (0, below), (0, right)))
        high, across = (rows + below) // self.height, (columns + right) // self.width
        return stack.reshape(count * high, self.height, across, self.width)

    @property
    def divides(self) -> bool:
        """Whether `parts` can cut an array: no stack of matrices has short blocks below."""
        return self.stack[0] == 1 or self.stack[1] % self.height == 0

    def parts(self, x: Array) -> list[Array]:
        """Return x, contiguous, as views (R, M, C, N), blocks at ragged ends apart from the rest."""
        count, rows, columns = self.stack
        stack = x.reshape(self.stack)
        return [
            np.reshape(
                stack[:, top : top + high, left : left + wide],
                (count * high // height, height, wide // width, width),
                copy=False,
            )
            for top, high, height in _runs(rows, self.height)
            for left, wide, width in _runs(columns, self.width)
        ]

    def restore(self, view: Array) -> Array:
        """Return what `view` was made from: the padding cut off, in the original shape."""
        count, rows, columns = self.stack
        stack = view.reshape(count, -1, view.shape[2] * view.shape[3])
        return stack[:, :rows, :columns].reshape(self.shape)


def _runs(length: int, size: int) -> list[tuple[int, int, int]]:
    """Cut an axis into whole blocks and a short one: (start, length, size of its blocks)."""
    rest = length % size
    runs = [(0, length - rest, size), (length - rest, rest, rest)]
    return [run for run in runs if run[1]]


def _axis(block: Block, ndim: int) -> int:
    if ndim == 1 and block.axis in (-1, -2):
        return 0
    if not -ndim <= block.axis < ndim:
        msg = f"blocks {block} run along axis {block.axis}, which an array of {ndim} axes has not"
        raise ValueError(msg)
    return block.axis % ndim


def slabs(view: Array, itemsize: int | None = None) -> Iterator[Slab]:
    """Cut a four-dimensional array into contiguous pieces of at most `BLOCK_BYTES`."""
    room = BLOCK_BYTES // (itemsize or view.dtype.itemsize)
    if array_module(view) is not np:
        room = view.size  # a device has no use for small pieces
    ranges = []
    for length in reversed(view.shape):
        step = min(length, room)
        room //= step
        ranges.append([slice(at, at + step) for at in range(0, length, step)])
    return product(*reversed(ranges))
