"""Arrays in scaled formats: scales of whole arrays of blocks, and rounding with them.

`tiling.py` lays out the blocks.  The work goes through the array in slabs that stay in the cache,
twice: once for amax, once to divide, round and multiply.  amax comes from the bits: of numbers
without their sign the larger one has the larger bit pattern, infinities and NaN on top.

Dividing by the scale must not show in the result.  By a power of two it rounds nothing.  By any
other scale the quotient is computed in float64, where it cannot be mistaken for a value or a
midpoint of the element format that it is not: these, times the scale, are numbers that float64
holds, so a quotient that is not one of them differs by more than its own rounding.  float32 arrays
to be rounded to nearest are divided in float32 all the same: only quotients beside a midpoint are
in doubt there, and these few are divided again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from precsim.formats.arrays import Array, array_module
from precsim.formats.extents import extent_of
from precsim.formats.format import Format, Specials
from precsim.formats.kernels import round_into
from precsim.formats.modes import Mode, Overflow, Rounding, Stochastic, Variant
from precsim.formats.scaled import FP32, Scaled, ScaleRule
from precsim.formats.scales import (
    Scales,
    factors_of,
    one_level,
    round_products,
    spread,
    two_levels,
)
from precsim.formats.scratch import scratch
from precsim.formats.tiling import Tiling, slabs

_EXPONENT = np.uint64(0x7FF0000000000000)

MINDFUL = (Rounding.UP, Rounding.DOWN, Rounding.TO_ODD, Stochastic(Variant.EQUAL))
"""Modes that may move a value up however close to its lower neighbour it lies."""

ONE_PASS: dict[str, Callable[[Array, Array, Tiling, Scaled, Mode, Array | None, float], bool]] = {}
"""What rounds the arrays of a module, by its name, in one pass, or says that it has not; a backend
registers it."""


def quantize_into(
    x: Array,
    out: Array,
    fmt: Scaled,
    rounding: Mode,
    words: Array | None = None,
    factor: float = 1.0,
) -> None:
    """Round contiguous x into contiguous `out`, which may be x; the rules are `Scaled`'s.

    Each value is scale times element, rounded to nearest once where the carrier cannot hold it.
    `factor`, a float32 number, is that of `ScaleRule.DELAYED`.
    """
    tiling = Tiling.of(x.shape, fmt.block)
    if x.size == 0:
        return
    one_pass = ONE_PASS.get(array_module(x).__name__)
    if one_pass is not None and one_pass(x, out, tiling, fmt, rounding, words, factor):
        return
    with np.errstate(all="ignore"):  # what is beyond the range is the subject here
        if tiling.divides and array_module(x) is np:
            targets, parts = tiling.parts(out), tiling.parts(x)
            drawn = [None] * len(parts) if words is None else tiling.parts(words)
            scales = _scales_of_parts(parts, fmt, factor)
            for source, target, found, these in zip(parts, targets, scales, drawn, strict=True):
                _round(source, target, found, fmt, rounding, these)
            return
        source = tiling.view(x)
        target = array_module(x).empty_like(source)
        found = find_scales(source, fmt, factor)
        _round(source, target, found, fmt, rounding, None if words is None else tiling.view(words))
        out[...] = tiling.restore(target)


def split(
    x: Array, fmt: Scaled, rounding: Mode, words: Array | None = None
) -> tuple[Array, Scales]:
    """Return (elements, scales): the numbers that are stored, as float64.

    The elements have x's shape; those of affine formats include the zero point.  The arrays of
    `Scales` have the shape of the grid of blocks: x's, with the number of blocks for lengths.
    """
    xp, tiling = array_module(x), Tiling.of(x.shape, fmt.block)
    if x.size == 0:  # blocks without a value have the scale of zeros
        found = find_scales(xp.zeros((1, 1, 1, 1)), fmt)
        return xp.empty(x.shape), _mapped(found, lambda a: xp.broadcast_to(a[0, 0], tiling.grid))
    source = tiling.view(xp.ascontiguousarray(x))
    elements = xp.empty(source.shape)
    drawn = None if words is None else tiling.view(words)
    with np.errstate(all="ignore"):
        found = find_scales(source, fmt)
        _round(source, elements, found, fmt, rounding, drawn, multiply=False)
        if found.zero_points is not None:
            elements += found.zero_points[:, None, :, None]
    return tiling.restore(elements), _mapped(found, lambda a: a.reshape(tiling.grid))


def _mapped(scales: Scales, layout: Callable[[Array], Array]) -> Scales:
    """Return the scales with what there is for every block in another layout."""
    zero_points = None if scales.zero_points is None else layout(scales.zero_points)
    return Scales(layout(scales.blocks), scales.tensor, zero_points)


def join(elements: Array, scales: Scales, fmt: Scaled) -> Array:
    """Return the values that elements and scales, as `split` gives them, stand for, as float64."""
    tiling = Tiling.of(elements.shape, fmt.block)
    if elements.size == 0:
        return elements
    view = tiling.view(elements)
    high, _, across, _ = view.shape
    if scales.zero_points is not None:
        view = view - scales.zero_points.reshape(high, 1, across, 1)
    return tiling.restore(view * scales.total.reshape(high, 1, across, 1))


def find_scales(view: Array, fmt: Scaled, factor: float = 1.0) -> Scales:
    """Return the scales of the blocks of an (R, M, C, N) array, by the format's rule."""
    if fmt.rule is ScaleRule.DELAYED:
        return one_level(array_module(view).full((1, 1), factor, np.float32))
    return _scales_for(extent_of(view, affine=fmt.affine), fmt)


def _scales_of_parts(parts: list[Array], fmt: Scaled, factor: float) -> list[Scales]:
    """Return the scales of each part of one array: a scale of the tensor knows all of them."""
    if len(parts) == 1 or fmt.rule is ScaleRule.DELAYED:
        return [find_scales(part, fmt, factor) for part in parts]
    extents = [extent_of(part, affine=fmt.affine) for part in parts]
    rows = (
        np.concatenate([e.reshape(1, -1) for e in each], axis=1)
        for each in zip(*extents, strict=True)
    )
    found, grids, start = _scales_for(tuple(rows), fmt), [], 0
    for first, *_ in extents:
        here, shape = slice(start, start + first.size), first.shape
        start += first.size
        blocks, zero_points, factors = (
            None if a is None else a[:, here].reshape(shape)
            for a in (found.blocks, found.zero_points, found.factors)
        )
        assert blocks is not None
        grids.append(Scales(blocks, found.tensor, zero_points, factors))
    return grids


def _scales_for(extent: tuple[Array, ...], fmt: Scaled) -> Scales:
    """Return the scales of blocks with this extent, arrays (R, C)."""
    if fmt.affine:
        low, high = extent
        return _affine_scales(low, high, fmt)
    (amax,) = extent
    xp = array_module(amax)
    finite = xp.isfinite(amax)
    if not finite.all():
        amax[~finite] = xp.nan
    if fmt.amax_min:
        xp.maximum(amax, fmt.amax_min, out=amax)
    if fmt.rule is ScaleRule.INVERSE:
        amax[amax > FP32.max] = xp.nan
        if fmt.tensor_scale is not None:
            return two_levels(amax, fmt)
        if fmt.scale == FP32:
            return one_level(factors_of(amax, fmt.element.max))
        ratio = amax / fmt.element.max
        blocks = _stored(ratio, amax == 0, fmt.scale, fmt.smallest_scale)
        return Scales(blocks, factors=factors_of(blocks, 1))
    if fmt.scale.man_bits == 0 and fmt.rule.gives_powers:  # what _stored would do, and quicker
        return Scales(xp.clip(_ratio(amax, fmt), fmt.smallest_scale, fmt.scale.max))
    if fmt.tensor_scale is None:
        return Scales(_stored(_ratio(amax, fmt), amax == 0, fmt.scale, fmt.smallest_scale))
    tensor = scale_of_tensor(xp.where(finite, amax, 0.0).max().reshape(1, 1), fmt)
    ratio = amax / (fmt.element.max * tensor)
    return Scales(_stored(ratio, amax == 0, fmt.scale, fmt.smallest_scale), tensor)


def scale_of_tensor(top: Array, fmt: Scaled) -> Array:
    """Return the second level's scale from the largest finite amax of a block."""
    assert fmt.tensor_scale is not None
    ratio = top / (fmt.element.max * fmt.scale.max)
    return _stored(ratio, top == 0, fmt.tensor_scale, fmt.tensor_scale.smallest_subnormal)


def _affine_scales(low: Array, high: Array, fmt: Scaled) -> Scales:
    """Return scales and zero points of blocks whose values lie between two ends, 0 included."""
    xp = array_module(low)
    span = high - low
    span[~xp.isfinite(span)] = xp.nan  # an infinity would saturate as a scale
    ratio = span / (fmt.max - fmt.min)
    scales = _stored(ratio, high == low, fmt.scale, fmt.smallest_scale)
    zero_points = xp.clip(fmt.min - xp.rint(low / scales), fmt.min, fmt.max)
    return Scales(scales, zero_points=xp.nan_to_num(zero_points))


def _ratio(amax: Array, fmt: Scaled) -> Array:
    """Return the scale that the rule gives, before it is rounded to its own format."""
    xp, element = array_module(amax), fmt.element
    if fmt.rule is ScaleRule.MAX:
        return amax / element.max
    if fmt.rule is ScaleRule.SPAN:
        return amax / ((fmt.max - fmt.min) / 2)
    binade = (amax.view(np.uint64) & _EXPONENT).view(np.float64)  # 2^e; subnormals: 0, and no loss
    ratio = binade * 2.0**-element.emax
    threshold = doubled_above(fmt)
    if threshold < 2:
        xp.copyto(ratio, ratio + ratio, where=amax > binade * threshold)
    xp.copyto(ratio, xp.nan, where=xp.isnan(amax))  # whose bits were read as 2^1024
    return ratio


def doubled_above(fmt: Scaled) -> float:
    """Return the significand of amax above which the scale is twice that of `ScaleRule.FLOOR`."""
    element = fmt.element
    match fmt.rule:
        case ScaleRule.CEIL:
            return 1.0
        case ScaleRule.RCEIL:
            return element.max / 2.0**element.emax
        case ScaleRule.EVEN:  # from this tie on, the element's significand rounds up to 2
            return math.nextafter(2 - 2.0**-element.precision, 0)
    return 2.0


def _stored(ratio: Array, of_zeros: Array, scale: Format, least: float) -> Array:
    """Return the ratios as scales: rounded to nearest, no less than `least`, NaN if infinite."""
    xp = array_module(ratio)
    beyond = Overflow.IEEE if scale.has_inf else Overflow.SATURATE
    round_into(ratio, ratio, scale, Rounding.NEAREST, beyond)
    xp.maximum(ratio, least, out=ratio)
    if scale.has_inf:
        ratio[xp.isinf(ratio)] = xp.nan
        ratio[of_zeros] = 1
    return ratio


def _round(
    source: Array,
    target: Array,
    scales: Scales,
    fmt: Scaled,
    rounding: Mode,
    words: Array | None,
    *,
    multiply: bool = True,
) -> None:
    """Divide by the scales, round to the elements, and multiply again (or leave the elements)."""
    if scales.factors is not None:
        round_products(source, target, scales, fmt, rounding, words, multiply=multiply)
        return
    xp = array_module(source)
    grid = wider(fmt.element) if fmt.full_range or fmt.affine else fmt.element
    work, doubt = carrier(source, fmt, rounding, scales.tensor)
    total = divisors = scales.total
    if fmt.smallest_scale == 0:  # over a scale that underflowed to zero, elements saturate
        divisors = xp.where(total == 0, np.finfo(work).smallest_normal, total)
    narrow = divisors.astype(work, copy=False)
    # float32 holds element times block scale, and then the product with the tensor's rounds once.
    last = None if doubt is None or scales.tensor is None else scales.tensor.astype(work)
    factors = (total if last is None else scales.blocks).astype(work, copy=False)
    for slab in slabs(source, work.itemsize):
        rows, _, across, _ = slab
        part = source[slab]
        divisor = spread(narrow[rows, across], part.shape[3])
        quotient = scratch("quotient", part, work)
        xp.divide(part, divisor, out=quotient)
        _keep_inexact(part, quotient, rounding, fmt.element.quantum)
        drawn = None if words is None else xp.ascontiguousarray(words[slab])
        rounded = quotient if doubt is None else scratch("elements", part, work)
        round_into(quotient, rounded, grid, rounding, Overflow.SATURATE, drawn)
        if doubt is not None:
            places = _near_midpoints(quotient.reshape(-1), rounded.reshape(-1), grid, doubt)
            if places.size:
                _divide_again(part, divisors[rows, across], rounded, places, grid, rounding)
        if grid is not fmt.element:
            zero: Any = 0.0
            if scales.zero_points is not None:
                zero = scales.zero_points[rows, None, across, None].astype(work, copy=False)
            xp.clip(rounded, fmt.min - zero, fmt.max - zero, out=rounded)
        if multiply:
            same = divisors is total and last is None
            factor = divisor if same else spread(factors[rows, across], part.shape[3])
            if last is not None:
                rounded *= factor
                factor = last
            xp.multiply(rounded, factor, out=target[slab], casting="same_kind")
        else:
            target[slab] = rounded


def carrier(
    source: Array, fmt: Scaled, rounding: Mode, tensor: Array | None
) -> tuple[np.dtype[Any], int | None]:
    """Return the dtype in which to divide, and the doubt about a quotient's place near a midpoint.

    None: its place is that of the exact quotient.  0: it may be on a midpoint that the exact one is
    only near.  2: it may be two units in the last place away, on the other side of a midpoint.
    """
    wide, element = np.dtype(np.float64), fmt.element
    if source.dtype == wide or element.quantum < 2.0**-100:  # float64 has room below the quantum
        return wide, None
    if fmt.has_powers:
        return source.dtype, None
    if rounding not in (Rounding.NEAREST, Rounding.NEAREST_AWAY) or element.precision > 12:
        return wide, None
    if tensor is None:
        held = fmt.scale == FP32 and fmt.smallest_scale > 0
        return (source.dtype, 0) if held else (wide, None)
    exact_product = element.precision + fmt.scale.precision <= 24 and not element.is_integer
    inside = 2.0**-90 < float(tensor.reshape(-1)[0]) < 2.0**90  # no scale is a float32 subnormal
    fast = exact_product and inside and fmt.scale.quantum > 2.0**-30
    return (source.dtype, 2) if fast else (wide, None)


def _near_midpoints(quotient: Array, rounded: Array, grid: Format, doubt: int) -> Array:
    """Return the indices of float32 quotients too near a midpoint between elements to be sure of.

    A quotient by a scale that float32 holds is, rounded, on the same side of every float32 number
    as before, or it is that number; a scale that had to be rounded moves it by two units at most.
    Midpoints have one significand bit more than elements, and zeros below.
    """
    xp = array_module(quotient)
    if grid.is_integer:
        return xp.flatnonzero(xp.abs(quotient - rounded) == grid.quantum / 2)  # type: ignore[no-any-return]
    below = np.uint32((1 << 22 - grid.man_bits) - 1)
    bits, rest = quotient.view(np.uint32), scratch("rest", quotient, np.uint32)
    if doubt:
        bits = xp.add(bits, np.uint32(doubt), out=rest)
    xp.bitwise_and(bits, below, out=rest)
    near = xp.less_equal(rest, np.uint32(2 * doubt), out=scratch("near", quotient, bool))
    places = xp.flatnonzero(near)
    if places.size > quotient.size // 16:  # cheaper for all than for so many
        return xp.flatnonzero(near & _astray(quotient, rounded, grid))  # type: ignore[no-any-return]
    return places[_astray(quotient[places], rounded[places], grid)]  # type: ignore[no-any-return]


def _astray(quotient: Array, rounded: Array, grid: Format) -> Array:
    """Return where quotients are not close to what they were rounded to: elements end in zeros too."""
    xp = array_module(quotient)
    return xp.abs(quotient - rounded) * 2.0 ** (grid.man_bits + 4) > xp.abs(quotient)  # type: ignore[no-any-return]


def _divide_again(
    part: Array, divisors: Array, rounded: Array, places: Array, grid: Format, rounding: Mode
) -> None:
    """Round again, from float64, the elements that a float32 quotient does not decide."""
    xp = array_module(part)
    indices = xp.unravel_index(places, part.shape)
    again = part[indices].astype(np.float64) / divisors[indices[0], indices[2]]
    round_into(again, again, grid, rounding, Overflow.SATURATE)
    rounded.reshape(-1)[places] = again


def _keep_inexact(part: Array, quotient: Array, rounding: Mode, quantum: float) -> None:
    """Let a quotient too small for the carrier still be more than zero for modes that care."""
    if rounding in MINDFUL:
        xp = array_module(part)
        lost = (quotient == 0) & (part != 0)
        xp.copyto(quotient, xp.copysign(quantum / 4, part), where=lost, casting="same_kind")


def wider(element: Format) -> Format:
    """Return the integers of twice the range: room for a zero point and for the lowest code."""
    name, bits = f"{element.name}_wide", element.man_bits + 1
    return Format(name, 0, bits, Specials.FINITE, bias=element.bias - 1)
