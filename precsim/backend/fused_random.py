"""Philox4x64-10, compiled by Numba: the words of `precsim.backend.random`, in less than half the time.

NumPy makes a generator for every key, which takes longer than a few thousand words.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precsim.backend.fused import compiled
from precsim.backend.fused_bits import product
from precsim.formats.arrays import Array

_FIRST, _SECOND = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_STEP, _OTHER_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ZERO = np.uint64(0)


def philox(key: tuple[int, int], block: int, blocks: int) -> Array:
    """Return so many blocks of four words, flat, from a block on.

    The first block is that of counter 1, as NumPy has it; `block` + `blocks` is less than 2^64.
    """
    found = np.empty(4 * blocks, np.uint64)
    _run(found, np.uint64(block + 1), np.uint64(key[0]), np.uint64(key[1]))
    return found


@compiled
def _run(found: Any, counter: Any, key: Any, other_key: Any) -> None:
    for i in range(found.size // 4):
        c0, c1, c2, c3 = counter + np.uint64(i), _ZERO, _ZERO, _ZERO
        k0, k1 = key, other_key
        for _ in range(10):
            high0, low0 = product(c0, _FIRST)
            high1, low1 = product(c2, _SECOND)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0 += _STEP
            k1 += _OTHER_STEP
        found[4 * i], found[4 * i + 1], found[4 * i + 2], found[4 * i + 3] = c0, c1, c2, c3
