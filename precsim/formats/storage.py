"""How many bytes values take in a format, were they stored in it and not emulated.

A model of memory, not a measurement: what an array of this format takes on hardware that has the
format.  NumPy holds every value in the carrier, whatever the format.
"""

from __future__ import annotations

from math import ceil, prod

from precsim.formats.format import Format
from precsim.formats.registry import AnyFormat
from precsim.formats.tiling import Tiling

WORDS = (32, 64)
"""Widths in which formats of more than 16 bits are stored: tf32 takes the 32 of a float32."""


def stored_bytes(fmt: AnyFormat, shape: tuple[int, ...]) -> int:
    """Return the bytes of an array of `shape`: packed codes, and the scales that its blocks share.

    Formats of up to 16 bits are packed without gaps, so two fp4 take a byte and four fp6 three (OCP
    MX 1.0, section 5); wider ones take 32 or 64 bits.  A block cut short at an edge has a scale of
    its own; NVFP4 has one fp32 for the whole tensor besides; a zero point takes as much as an
    element.  An empty array takes nothing, a scalar one value and, where blocks share, one scale.
    """
    values = prod(shape)
    if not values:
        return 0
    if isinstance(fmt, Format):
        return ceil(values * _width(fmt) / 8)
    blocks = prod(Tiling.of(shape, fmt.block).grid)
    per_block = fmt.scale.bits + (fmt.element.bits if fmt.affine else 0)
    bits = values * fmt.element.bits + blocks * per_block
    return ceil((bits + (fmt.tensor_scale.bits if fmt.tensor_scale else 0)) / 8)


def _width(fmt: Format) -> int:
    return fmt.bits if fmt.bits <= 16 else next(w for w in WORDS if fmt.bits <= w)
