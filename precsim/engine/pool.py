"""Memory for arrays, used again: a step makes the same arrays as the step before.

A new array of a megabyte costs more in page faults than the arithmetic that fills it.  A pool hands
out memory that an array gave back when the last reference to it, or to a view of it, was gone.
"""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import Any
from weakref import ref

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SMALLEST = 1 << 15
"""Bytes below which the allocator is as fast."""
ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector."""


class Pool:
    """Arrays without values, in memory that was some array's before, if there is any of that size.

    Whoever holds an array or a view of one keeps its memory: nothing is taken away from anybody.
    `limit`: bytes that wait to be used again, at most; what comes back beyond that frees them all.
    """

    def __init__(self, limit: int = 1 << 28) -> None:
        self.limit = limit
        self.waiting = 0
        self._free: dict[int, list[memoryview]] = defaultdict(list)
        self._lent: dict[int, ref[Array]] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a C-contiguous array of any values."""
        size = prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        try:
            memory = self._free[size].pop()
            self.waiting -= size
        except IndexError:
            memory = _aligned(size)
        whole = np.frombuffer(memory, dtype)  # of which all views of the array are views, too

        self._lent[id(memory)] = ref(whole, lambda _: self._take_back(memory))
        return whole.reshape(shape)

    def _take_back(self, memory: memoryview) -> None:
        del self._lent[id(memory)]
        if self.waiting + memory.nbytes > self.limit:
            self._free.clear()
            self.waiting = 0
        if memory.nbytes <= self.limit:
            self._free[memory.nbytes].append(memory)
            self.waiting += memory.nbytes


def _aligned(size: int) -> memoryview:
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw.data[start : start + size]
