"""Scratch memory for kernels that go through an array in blocks: each thread has its own, and keeps it.

A block's intermediate results are as large as the block.  Making new arrays for them costs page
faults, which cost more than the arithmetic does.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from precsim.formats.arrays import Array, array_module

BLOCK_BYTES = 1 << 17
"""Bytes of a block: with its scratch space it stays in the second-level cache."""

SLOT_BYTES = 2 * BLOCK_BYTES
"""Bytes of a block that needs little scratch space; no array of scratch memory is larger."""

_ALIGNMENT = 64
_MOST_PAIRS = 256


class _Memory(threading.local):
    def __init__(self) -> None:
        self.slots: dict[str, Array] = {}
        self.pairs: dict[tuple[str, int, np.dtype[Any]], tuple[Array, Array]] = {}


_memory = _Memory()


def scratch(slot: str, like: Array, dtype: Any = None) -> Array:
    """Return an array of any values, contiguous, of the shape of another and of its dtype.

    The next call with the same `slot` returns the same memory, in the same thread; two arrays that
    are in use at once need two slots.  What is larger than `SLOT_BYTES`, or not NumPy's, is a new array.
    """
    dtype = like.dtype if dtype is None else np.dtype(dtype)
    size = like.size * dtype.itemsize
    if size > SLOT_BYTES or array_module(like) is not np:
        return array_module(like).empty(like.shape, dtype)  # type: ignore[no-any-return]
    memory = _memory.slots.get(slot)
    if memory is None:
        raw = np.empty(SLOT_BYTES + _ALIGNMENT, np.uint8)
        start = -raw.__array_interface__["data"][0] % _ALIGNMENT
        memory = _memory.slots[slot] = raw[start : start + SLOT_BYTES]
    room: Array = memory[:size].view(dtype)
    return room if like.ndim == 1 else room.reshape(like.shape)


def scratch_bits(slot: str, like: Array) -> tuple[Array, Array]:
    """Return scratch memory for floats like those of a one-dimensional array, and its bits."""
    size, dtype = like.size, like.dtype
    found = _memory.pairs.get((slot, size, dtype))
    if found is None:
        numbers = scratch(slot, like)
        found = numbers, numbers.view(np.uint32 if dtype == np.float32 else np.uint64)
        if size * dtype.itemsize <= SLOT_BYTES:
            if len(_memory.pairs) == _MOST_PAIRS:
                _memory.pairs.clear()
            _memory.pairs[slot, size, dtype] = found
    return found


@lru_cache(maxsize=512)
def repeated(value: float, dtype: np.dtype[Any], size: int) -> Array:
    """Return that many times a number, read-only: NumPy compares arrays faster than with one number.

    Up to the size of `SLOT_BYTES` it is part of an array that all sizes share.
    """
    most = SLOT_BYTES // dtype.itemsize
    if size == most:
        room = np.full(size, value, dtype)
        room.flags.writeable = False
        return room
    return repeated(value, dtype, most)[:size] if size < most else np.full(size, value, dtype)
