"""What the values of each block span: the largest magnitude, or both ends.

The work goes through the array in slabs that stay in the cache.  A largest magnitude comes from the
bits: of numbers without their sign the larger one has the larger bit pattern, infinities and NaN on
top.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precsim.formats.arrays import Array, array_module
from precsim.formats.scales import REPEATED
from precsim.formats.scratch import scratch
from precsim.formats.tiling import slabs


def extent_of(view: Array, *, affine: bool) -> tuple[Array, ...]:
    """Return (amax,) of the blocks of an (R, M, C, N) array, as float64 (R, C); NaN counts as the
    largest of all.  `affine`: the two ends, with 0 between them, NaN if there is one.
    """
    return _ends(view) if affine else (_amax(view),)


def _ends(view: Array) -> tuple[Array, Array]:
    xp = array_module(view)
    low, high = (xp.zeros((view.shape[0], view.shape[2]), view.dtype) for _ in range(2))
    for rows, inner, across, columns in slabs(view):
        part, below, above = (
            view[rows, inner, across, columns],
            low[rows, across],
            high[rows, across],
        )
        xp.minimum(below, part.min(axis=(1, 3)), out=below)
        xp.maximum(above, part.max(axis=(1, 3)), out=above)
    return low.astype(np.float64), high.astype(np.float64)


def _amax(view: Array) -> Array:
    """Return the largest magnitude of each block, as float64; NaN counts as the largest of all."""
    xp = array_module(view)
    uint: Any = np.uint32 if view.dtype == np.float32 else np.uint64
    magnitude = uint(np.iinfo(uint).max >> 1)
    found = xp.zeros((view.shape[0], view.shape[2]), uint)
    for rows, inner, across, columns in slabs(view):
        part = view[rows, inner, across, columns]
        bits: Array = scratch("bits", part, uint)
        xp.bitwise_and(part.view(uint), magnitude, out=bits)
        if bits.shape[1] > 1:
            bits = bits.max(axis=1, keepdims=True)
        largest = _largest_of_runs(bits, bits.shape[3]).reshape(bits.shape[0], bits.shape[2])
        here = found[rows, across]
        xp.maximum(here, largest, out=here)
    return found.view(view.dtype).astype(np.float64)  # type: ignore[no-any-return]


def _largest_of_runs(bits: Array, length: int) -> Array:
    """Return the maximum of each run of `length`: short ones by halving, which a reduction is not
    fast at."""
    xp, flat = array_module(bits), bits.reshape(-1)
    while length % 2 == 0 and length < REPEATED:
        flat, length = xp.maximum(flat[::2], flat[1::2]), length // 2
    if length == 1:
        return flat
    if xp is np:
        return np.maximum.reduceat(flat, np.arange(0, flat.size, length))
    return flat.reshape(-1, length).max(axis=1)  # type: ignore[no-any-return]
