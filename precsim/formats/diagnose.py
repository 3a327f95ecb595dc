"""What a scaled format does to each block: what it clips, what it flushes, what it leaves unused.

A scale serves a block badly in two ways.  Too small, and the largest values saturate; too large,
and the small ones become zero while binades at the top of the element format stay empty.  One
outlier in a block does the second to all the others; OCP's floor rule does the first to every
block whose amax has a larger significand than the element's maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.arrays import Array, array_module, as_float
from precsim.formats.blocks import join, split
from precsim.formats.modes import Mode, Rounding, stochastic
from precsim.formats.quantize import random_words, resolve_modes
from precsim.formats.registry import AnyFormat, format
from precsim.formats.scaled import Scaled
from precsim.formats.scales import Scales
from precsim.formats.tiling import Tiling


@dataclass(frozen=True)
class Diagnosis:
    """Counts for every block, in arrays of the shape that the format's scales have.

    `amax`: largest magnitude, NaN or infinite where a value is.  `scale`: what elements are
    multiplied with, NaN where the block is not finite.  `clipped`: values more than half a step
    beyond the largest element, which saturation moved and not rounding.  `flushed`: values that
    are not zero and became zero.  `wasted`: binades at the top of the element format that lie above
    amax.  `nonzero`: values that are not zero.  A block that is not finite counts as neither
    clipped nor flushed.
    """

    format: Scaled
    amax: Array = field(repr=False)
    scale: Array = field(repr=False)
    clipped: Array = field(repr=False)
    flushed: Array = field(repr=False)
    wasted: Array = field(repr=False)
    nonzero: Array = field(repr=False)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(self.scale.size)

    @property
    def lost(self) -> int:
        """How many blocks have a NaN or an infinity in them, and so have no scale."""
        return int((self.scale != self.scale).sum())

    @property
    def scale_histogram(self) -> dict[int, int]:
        """How many blocks have a scale from 2^e up to 2^(e + 1), for every e that occurs."""
        xp = array_module(self.scale)
        scales = self.scale[self.scale > 0]
        exponents, counts = xp.unique(xp.frexp(scales)[1] - 1, return_counts=True)
        return dict(zip(exponents.tolist(), counts.tolist(), strict=True))

    def __str__(self) -> str:
        histogram = self.scale_histogram
        scales = f"2^{min(histogram)} to 2^{max(histogram)}" if histogram else "none"
        clipping = _share((self.clipped > 0).sum(), self.blocks)
        flushed = _share(self.flushed.sum(), self.nonzero.sum())
        wasted = float(self.wasted.mean()) if self.blocks else 0.0
        most = int(self.clipped.max()) if self.blocks else 0
        return (
            f"{self.format.name}: {self.blocks} blocks, {clipping:.1%} clip (at most "
            f"{most} values of one); {flushed:.1%} of what is not zero "
            f"is flushed; {wasted:.2g} binades unused at the top; scales {scales}; {self.lost} lost "
            "to NaN or infinity"
        )


def diagnose(
    x: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    random: Array | np.random.Generator | int | None = None,
) -> Diagnosis:
    """Return what rounding x to a scaled format does to each of its blocks.

    NaN and infinities: see `Diagnosis`.  x: any shape, empty ones included; `rounding` and `random`
    as in `quantize`.  Raises `ValueError` for a format without scales, and as `quantize` does.
    """
    found = format(fmt)
    if not isinstance(found, Scaled):
        msg = f"{found.name} has no blocks: expected a scaled format, such as {found.name}:1x32"
        raise ValueError(msg)  # noqa: TRY004  (a format of the wrong sort, not type)
    values, (mode, _) = as_float(x), resolve_modes(found, rounding, None)
    words = random_words(values, random) if stochastic(mode) else None
    elements, scales = split(values, found, mode, words)
    tiling = Tiling.of(values.shape, found.block)
    if values.size == 0:
        nothing = np.zeros(tiling.grid)
        counts = np.zeros(tiling.grid, np.int64)
        scale = scales.total.reshape(tiling.grid)
        return Diagnosis(found, nothing, scale, counts, counts, counts, counts)
    with np.errstate(all="ignore"):
        return _diagnose(values.astype(np.float64), elements, scales, found, tiling)


def _diagnose(
    values: Array, elements: Array, scales: Scales, fmt: Scaled, tiling: Tiling
) -> Diagnosis:
    xp = array_module(values)
    view, rounded = tiling.view(values), tiling.view(join(elements, scales, fmt))
    high, _, across, _ = view.shape
    total = scales.total.reshape(high, 1, across, 1)
    zero: Any = 0.0
    if scales.zero_points is not None:
        zero = scales.zero_points.reshape(high, 1, across, 1)
    quotient = view / total
    half = fmt.element.ulp(fmt.element.max) / 2
    beyond = (quotient > fmt.max - zero + half) | (quotient < fmt.min - zero - half)
    amax = xp.abs(view).max(axis=(1, 3))
    # Of the quotient itself it would be that of a rounded one.
    (part, exponent), (unit, shift) = xp.frexp(amax), xp.frexp(total[:, 0, :, 0])
    filled = exponent - shift - (part < unit)
    known = xp.isfinite(total) & (total != 0)
    wasted = xp.where(known[:, 0, :, 0] & (amax > 0), fmt.element.emax - filled, 0)

    def count(where: Array) -> Array:
        return where.sum(axis=(1, 3)).reshape(tiling.grid)  # type: ignore[no-any-return]

    return Diagnosis(
        fmt,
        amax.reshape(tiling.grid),
        total.reshape(tiling.grid),
        count(beyond & known),
        count((rounded == 0) & (view != 0)),
        xp.maximum(wasted, 0).reshape(tiling.grid),
        count(view != 0),
    )


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0
