"""The scales of an array's blocks, and rounding with those that values are multiplied with.

A library that quantizes to fp8 computes a factor, max / amax, in float32, multiplies every value
with it, and keeps its reciprocal as the scale.  In exact arithmetic that is dividing by the scale;
in float32 it is not, and where the quotient lies on a midpoint the difference decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from precsim.formats.arrays import Array, array_module
from precsim.formats.kernels import round_into
from precsim.formats.modes import Mode, Overflow, Rounding
from precsim.formats.scaled import FP32, Scaled
from precsim.formats.tiling import slabs

REPEATED = 64
"""Blocks of up to this width get their scale repeated: faster than broadcasting short runs."""


@dataclass(frozen=True)
class Scales:
    """The scales of an array's blocks, as float64 values of shape (R, C).

    `tensor` is the second level, of one element; `zero_points` are whole numbers; `factors` are what
    values are multiplied with, where they are not divided by the scale.  None: has none.
    """

    blocks: Array
    tensor: Array | None = None
    zero_points: Array | None = None
    factors: Array | None = None

    @property
    def total(self) -> Array:
        """What the elements of each block are multiplied with."""
        return self.blocks if self.tensor is None else self.blocks * self.tensor


def factors_of(amax: Array, largest: float) -> Array:
    """Return largest / amax as float32 numbers: 1 for zeros, no more than the largest."""
    xp = array_module(amax)
    factors = (largest / amax).astype(np.float32)
    factors[amax == 0] = 1
    return xp.minimum(factors, np.float32(FP32.max))  # type: ignore[no-any-return]


def two_levels(amax: Array, fmt: Scaled) -> Scales:
    """Return the scales of two levels, and the factors of the blocks, every step in float32."""
    xp, one = array_module(amax), np.float32(1)
    top = xp.where(xp.isnan(amax), 0, amax).max().reshape(1, 1)
    factor = factors_of(top, fmt.element.max * fmt.scale.max)
    blocks = amax.astype(np.float32) * (factor * (one / np.float32(fmt.element.max)))
    round_into(blocks, blocks, fmt.scale, Rounding.NEAREST, Overflow.SATURATE)
    tensor = one / factor
    factors = xp.minimum(one / (blocks * tensor), np.float32(FP32.max))
    return Scales(blocks.astype(np.float64), tensor.astype(np.float64), factors=factors)


def one_level(factors: Array) -> Scales:
    """Return the float32 reciprocals of float32 factors."""
    return Scales((1 / factors).astype(np.float64), factors=factors)


def round_products(
    source: Array,
    target: Array,
    scales: Scales,
    fmt: Scaled,
    rounding: Mode,
    words: Array | None,
    *,
    multiply: bool,
) -> None:
    """Multiply with the factors in float32, round to the elements, and multiply with the scales."""
    xp, factors = array_module(source), scales.factors
    assert factors is not None
    stored = scales.blocks.astype(target.dtype, copy=False)
    last = 1 if scales.tensor is None else scales.tensor.astype(target.dtype)
    for slab in slabs(source):
        rows, _, across, _ = slab
        part = source[slab].astype(np.float32, copy=False)
        elements = part * spread(factors[rows, across], part.shape[3])
        drawn = None if words is None else xp.ascontiguousarray(words[slab])
        round_into(elements, elements, fmt.element, rounding, Overflow.SATURATE, drawn)
        if multiply:
            scale = spread(stored[rows, across], part.shape[3])
            xp.multiply(elements * scale, last, out=target[slab])
        else:
            target[slab] = elements


def spread(scales: Array, width: int) -> Array:
    """Return scales of shape (R, C) in a shape that broadcasts against (R, M, C, N) quickly."""
    if 1 < width <= REPEATED:
        high, across = scales.shape
        repeated = array_module(scales).repeat(scales, width, axis=1)
        return repeated.reshape(high, 1, across, width)  # type: ignore[no-any-return]
    return scales[:, None, :, None]
