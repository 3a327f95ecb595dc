"""The executable specification of scaled formats: one block at a time, on fractions.

Read this file to learn what a scale rule means; `blocks.py` does the same for whole arrays, and
the tests hold the two together.  A block is a list of numbers, in any order; where the blocks of an
array lie is `members`, index by index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from precsim.formats import exact
from precsim.formats.format import Format, Specials, floor_log2
from precsim.formats.modes import Mode, Overflow, Rounding
from precsim.formats.scaled import ALL, FP32, Block, Scaled, ScaleRule


@dataclass(frozen=True)
class RoundedBlock:
    """What becomes of one block: ``values[i] == scale * (elements[i] - zero_point)``, exactly.

    `scale` includes the tensor's.  Where it is NaN, so are all values.  Zeros keep their sign, which
    a `Fraction` has not: they are floats.
    """

    scale: Fraction | float
    elements: list[float]
    values: list[Fraction | float]
    zero_point: int = 0


def round_block(
    numbers: Sequence[float],
    fmt: Scaled,
    rounding: str | Mode = Rounding.NEAREST,
    random: Sequence[Fraction] | None = None,
    tensor_scale: Fraction | float = 1,
) -> RoundedBlock:
    """Round the numbers of one block; `random` as in `precsim.formats.exact.round`, one for each."""
    if fmt.rule.multiplies:
        return _multiplied_block(numbers, fmt, rounding, random, Fraction(tensor_scale))
    scale = block_scale(numbers, fmt, tensor_scale)
    if exact.is_nan(scale):
        return RoundedBlock(math.nan, [], [math.nan] * len(numbers))
    total = Fraction(scale) * Fraction(tensor_scale)
    zero_point = _zero_point(numbers, fmt, total)
    elements, values = [], []
    for i, x in enumerate(numbers):
        draw = None if random is None else random[i]
        element = _element(x, total, fmt, rounding, draw, zero_point)
        elements.append(element + zero_point)
        exactly = Fraction(element) * total
        values.append(exactly if exactly else math.copysign(0.0, element))
    return RoundedBlock(total, elements, values, zero_point)


def _multiplied_block(
    numbers: Sequence[float],
    fmt: Scaled,
    rounding: str | Mode,
    random: Sequence[Fraction] | None,
    tensor_factor: Fraction,
) -> RoundedBlock:
    """Round a block whose numbers are multiplied with a factor, in float32; a delayed one is 1."""
    factor: Fraction | float = Fraction(1)
    if fmt.rule is ScaleRule.INVERSE:
        factor = _factor(numbers, fmt, fmt.element.max)
        if exact.is_nan(factor):
            return RoundedBlock(math.nan, [], [math.nan] * len(numbers))
    scale = Fraction(_single(1 / Fraction(factor)))
    if fmt.tensor_scale is None and fmt.scale != FP32:
        found = block_scale(numbers, fmt)
        if exact.is_nan(found):
            return RoundedBlock(math.nan, [], [math.nan] * len(numbers))
        scale = Fraction(found)
        factor = Fraction(min(_single(1 / scale), FP32.max))
    if fmt.tensor_scale is not None:
        amax = max([Fraction(fmt.amax_min), *(abs(exact.exact(x)) for x in numbers)])
        per_amax = _single(tensor_factor * Fraction(_single(1 / Fraction(fmt.element.max))))
        product = _single(Fraction(_single(amax)) * Fraction(per_amax))
        block = Fraction(exact.round(product, fmt.scale, Rounding.NEAREST, Overflow.SATURATE))
        tensor = Fraction(_single(1 / tensor_factor))
        both = Fraction(_single(block * tensor))
        factor = Fraction(min(_single(1 / both), FP32.max) if both else FP32.max)
        scale = block * tensor
    elements, values = [], []
    for i, x in enumerate(numbers):
        draw = None if random is None else random[i]
        single = _single(exact.exact(x)) if x and math.isfinite(x) else x
        finite = single and math.isfinite(single)  # a zero keeps its sign
        product = _single(Fraction(single) * Fraction(factor)) if finite else single
        element = exact.round(product, fmt.element, rounding, Overflow.SATURATE, draw)
        elements.append(element)
        exactly = Fraction(element) * scale if math.isfinite(element) else element
        values.append(exactly if exactly else math.copysign(0.0, element))
    return RoundedBlock(scale, elements, values)


def _factor(numbers: Sequence[float], fmt: Scaled, largest: float) -> Fraction | float:
    """Return largest / amax as a float32 number: 1 for zeros, NaN where amax is no float32 number."""
    if not all(math.isfinite(x) for x in numbers):
        return math.nan
    amax = max([Fraction(fmt.amax_min), *(abs(exact.exact(x)) for x in numbers)])
    if amax > Fraction(FP32.max):
        return math.nan
    ratio = Fraction(largest) / amax if amax else Fraction(1)
    return Fraction(min(_single(ratio), FP32.max))


def _single(x: Fraction) -> float:
    """Return the float32 number nearest to x; infinite beyond the largest."""
    return exact.round(x, FP32, Rounding.NEAREST, Overflow.IEEE)


def block_scale(
    numbers: Sequence[float], fmt: Scaled, tensor_scale: Fraction | float = 1
) -> Fraction | float:
    """Return the scale of a block, without the tensor's: NaN for NaN and infinities in it."""
    if exact.is_nan(tensor_scale) or not all(math.isfinite(x) for x in numbers):
        return math.nan
    amax = max([Fraction(fmt.amax_min), *(abs(exact.exact(x)) for x in numbers)])
    if amax == 0 and fmt.scale.has_inf:
        return Fraction(1)
    if fmt.affine:
        low, high = _ends(numbers)
        ratio = (high - low) / (Fraction(fmt.max) - Fraction(fmt.min))
    elif fmt.tensor_scale is not None:
        ratio = amax / (Fraction(fmt.element.max) * Fraction(tensor_scale))
    else:
        ratio = _ratio(amax, fmt)
    return _stored(ratio, fmt.scale, fmt.smallest_scale)


def tensor_scale(numbers: Sequence[float], fmt: Scaled) -> Fraction | float:
    """Return the second-level scale of all numbers of a tensor; 1 where the format has none.

    Where values are multiplied (`ScaleRule.INVERSE`), it is the tensor's factor.
    Blocks with a NaN or an infinity should be left out by the caller: they have no say in it, and
    neither have, for a factor, blocks with numbers beyond float32.
    """
    if fmt.tensor_scale is None:
        return Fraction(1)
    if fmt.rule is ScaleRule.INVERSE:
        inside = [x for x in numbers if abs(x) <= FP32.max]
        return _factor(inside, fmt, fmt.element.max * fmt.scale.max)
    amax = max([Fraction(fmt.amax_min), *(abs(exact.exact(x)) for x in numbers)])
    if amax == 0:
        return Fraction(1)
    ratio = amax / (Fraction(fmt.element.max) * Fraction(fmt.scale.max))
    return _stored(ratio, fmt.tensor_scale, fmt.tensor_scale.smallest_subnormal)


def _ratio(amax: Fraction, fmt: Scaled) -> Fraction:
    """Return the scale that the rule gives for this amax, exactly."""
    element, two = fmt.element, Fraction(2)
    if fmt.rule in (ScaleRule.MAX, ScaleRule.INVERSE):
        return amax / Fraction(element.max)
    if fmt.rule is ScaleRule.SPAN:
        return 2 * amax / (Fraction(fmt.max) - Fraction(fmt.min))
    if amax == 0:
        return Fraction(0)
    match fmt.rule:
        case ScaleRule.FLOOR:
            return two ** (floor_log2(amax) - element.emax)
        case ScaleRule.CEIL:
            return two ** (_ceil_log2(amax) - element.emax)
        case ScaleRule.RCEIL:
            return two ** _ceil_log2(amax / Fraction(element.max))
        case ScaleRule.EVEN:
            step = two ** (floor_log2(amax) - element.precision + 1)
            return two ** (floor_log2(round(amax / step) * step) - element.emax)
    raise AssertionError(fmt.rule)


def _ceil_log2(x: Fraction) -> int:
    exponent = floor_log2(x)
    return exponent + (x > Fraction(2) ** exponent)


def _stored(ratio: Fraction, scale: Format, least: float) -> Fraction | float:
    """Return the ratio as a value of the scale's format; NaN where that would be infinite."""
    beyond = Overflow.IEEE if scale.has_inf else Overflow.SATURATE
    rounded = exact.round(ratio, scale, Rounding.NEAREST, beyond)
    return Fraction(max(rounded, least)) if math.isfinite(rounded) else math.nan


def _element(
    x: float,
    total: Fraction,
    fmt: Scaled,
    rounding: str | Mode,
    random: Fraction | None,
    zero_point: int,
) -> float:
    """Return the element that x becomes, less the zero point."""
    if total == 0:  # a scale that underflowed: everything but zero is beyond the largest element
        return math.copysign(fmt.element.max, x) if x else exact.round(x, fmt.element)
    quotient = exact.exact(x) / total if x else x  # a zero keeps its sign
    if not (fmt.full_range or fmt.affine):
        return exact.round(quotient, fmt.element, rounding, Overflow.SATURATE, random)
    same_step = fmt.element.bias + fmt.element.man_bits - 50
    endless = Format("endless", 0, 50, Specials.FINITE, bias=same_step)
    rounded = exact.round(quotient, endless, rounding, Overflow.SATURATE, random)
    return min(max(rounded, fmt.min - zero_point), fmt.max - zero_point)


def _ends(numbers: Sequence[float]) -> tuple[Fraction, Fraction]:
    fractions = [Fraction(0), *map(exact.exact, numbers)]
    return min(fractions), max(fractions)


def _zero_point(numbers: Sequence[float], fmt: Scaled, scale: Fraction) -> int:
    """Return the code that stands for zero: 0 in a symmetric format."""
    if not fmt.affine:
        return 0
    low, _ = _ends(numbers)
    return min(max(int(fmt.min) - round(low / scale), int(fmt.min)), int(fmt.max))


def members(shape: tuple[int, ...], block: Block) -> Iterator[list[tuple[int, ...]]]:
    """Yield the indices of each block's members, blocks in the order in which scales are stored."""
    if not shape or block.height == ALL:
        yield list(product(*map(range, shape)))
        return
    lengths, extents = [1] * len(shape), list(shape)
    if block.height == 1:
        axis = -1 if len(shape) == 1 and block.axis == -2 else block.axis
        lengths[axis] = block.width or max(shape[axis], 1)
        extents[axis] = shape[axis] if block.width else lengths[axis]  # an empty row has one scale
    else:
        lengths[-2:] = [block.height, block.width][-len(shape) :]
    corners = (range(0, n, length) for n, length in zip(extents, lengths, strict=True))
    for corner in product(*corners):
        ends = zip(corner, lengths, shape, strict=True)
        yield list(product(*(range(at, min(at + length, n)) for at, length, n in ends)))
