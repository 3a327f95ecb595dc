"""Codes of whole arrays: rounding to bit patterns, and reading them, scales included."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precsim.formats.arrays import Array, array_module, as_float
from precsim.formats.blocks import join, split
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow, Rounding, stochastic
from precsim.formats.patterns import code_dtype_of, codes_of, values_of
from precsim.formats.profiles import Cast, Profile, nan_codes, round_as
from precsim.formats.quantize import conforming, quantize, random_words, resolve_modes
from precsim.formats.registry import AnyFormat, element_of, format
from precsim.formats.scaled import FP32, Scaled
from precsim.formats.scales import Scales
from precsim.formats.tiling import Tiling


class TwoLevel(NamedTuple):
    """The scales of a format that has two: the codes of the block scales, and the tensor's scale."""

    blocks: Array
    tensor: Any


class Affine(NamedTuple):
    """The scales of a format with zero points, and these: the codes that stand for zero."""

    scales: Array
    zero_points: Array


def code_dtype(fmt: str | AnyFormat) -> np.dtype[Any]:
    """Return the smallest unsigned integer type that holds the format's codes (uint8 .. uint64)."""
    return code_dtype_of(element_of(format(fmt)))


def encode(
    x: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Array | np.random.Generator | int | None = None,
    profile: str | Profile | None = None,
) -> Any:
    """Round x as `quantize` does and return the codes of the result, in `code_dtype(fmt)`.

    Every NaN, whatever its sign and payload, becomes the one canonical code: positive and quiet
    with an empty payload (e5m2 0x7e, fp16 0x7e00), all ones where that is the only NaN (e4m3 0x7f,
    e8m0 0xff), 0x80 in the FNUZ formats; with a `profile` its code is the library's.  Infinities,
    overflow, NaN in formats without one, and -0 follow `quantize`.  Integers are two's complement
    codes (int8: -1 is 0xff).

    x: any shape; the codes have the same.  For a scaled format the answer is a pair
    ``(codes, scales)``; `scales` has x's shape with the number of blocks in place of lengths.
    fp32 scales are float32 numbers, scales in any other format its codes (e8m0 0x7f is 1).  With a
    tensor scale they are a `TwoLevel`, with zero points an `Affine`.  In a block whose scale is
    NaN the elements' codes are those of NaN or 0, in one whose scale is zero those of the ends of
    the range.  Raises as `quantize` does.
    """
    fmt, cast = format(fmt), None
    if profile is not None:
        fmt, cast = conforming(fmt, profile, rounding, overflow)
    if isinstance(fmt, Format) and cast is not None:
        return _codes_as(as_float(x), fmt, cast)
    if isinstance(fmt, Format):
        return codes_of(quantize(x, fmt, rounding, overflow, random), fmt)
    values, (mode, _) = as_float(x), resolve_modes(fmt, rounding, overflow)
    words = random_words(values, random) if stochastic(mode) else None
    elements, scales = split(values, fmt, mode, words)
    return codes_of(elements, fmt.element), _stored_scales(scales, fmt)


def decode(
    codes: npt.ArrayLike,
    fmt: str | AnyFormat,
    dtype: npt.DTypeLike = np.float64,
    scales: npt.ArrayLike | TwoLevel | Affine | None = None,
) -> Array:
    """Return the values that the codes stand for, as float64 or float32.

    NaN codes of any sign and payload give NaN, infinity codes infinities, the code of -0 gives
    -0.0.  The subnormal codes of a format that flushes them give zeros.  The lowest two's
    complement code (int8 0x80), which `encode` never makes, reads as -128.

    codes: integers of any shape.  `scales`, as `encode` returns them, are required for a scaled
    format and refused for others; a value is then scale times element, rounded once.
    Raises `TypeError` for codes that are not integers and `ValueError` for codes outside
    0 .. 2^bits - 1, and for a `dtype` that cannot hold every value of the format.
    """
    fmt = format(fmt)
    element = element_of(fmt)
    carrier = {"float32": "fp32", "float64": "fp64"}.get(np.dtype(dtype).name)
    if carrier is None or not element_of(format(carrier)).contains(element):
        msg = f"{np.dtype(dtype)} is no home for every value of {element!r}: use float64"
        raise ValueError(msg)
    if isinstance(fmt, Scaled) != (scales is not None):
        wanted = "the scales that encode returned" if isinstance(fmt, Scaled) else "no scales"
        msg = f"decoding {fmt.name} takes {wanted}; got {'none' if scales is None else 'some'}"
        raise ValueError(msg)
    checked = _checked(codes, element)
    if not isinstance(fmt, Scaled):
        return values_of(checked, element, np.dtype(dtype))
    values = values_of(checked, element, np.dtype(np.float64))
    with np.errstate(all="ignore"):
        joined = join(values, _read_scales(scales, fmt, values), fmt)
        return joined.astype(dtype, copy=False)[()]


def _stored_scales(scales: Scales, fmt: Scaled) -> Any:
    """Return scales as they are stored: float32 numbers, or codes of their format."""
    blocks = scales.blocks
    stored = blocks.astype(np.float32) if fmt.scale == FP32 else codes_of(blocks, fmt.scale)
    if fmt.tensor_scale is not None and scales.tensor is not None:
        tensor = scales.tensor.reshape(())[()]
        is_fp32 = fmt.tensor_scale == FP32
        return TwoLevel(
            stored, tensor.astype(np.float32) if is_fp32 else codes_of(tensor, fmt.tensor_scale)
        )
    if scales.zero_points is not None:
        signed = np.dtype(f"i{code_dtype(fmt).itemsize}")
        return Affine(stored, scales.zero_points.astype(signed))
    return stored


def _read_scales(stored: Any, fmt: Scaled, values: Array) -> Scales:
    """Return what `_stored_scales` stored as numbers; raise `ValueError` where it does not fit."""
    xp, grid = array_module(values), Tiling.of(values.shape, fmt.block).grid
    parts = stored if isinstance(stored, tuple) else (stored,)
    pair = fmt.affine or fmt.tensor_scale is not None
    if len(parts) != 1 + pair:
        wanted = ("Affine" if fmt.affine else "TwoLevel") if pair else "one array"
        msg = f"decoding {fmt.name} takes scales as encode returns them: expected {wanted}"
        raise ValueError(msg)

    def numbers(part: Any, scale: Format | None) -> Array:
        found: Any = xp.asarray(part, np.float64) if scale in (None, FP32) else decode(part, scale)
        return found  # type: ignore[no-any-return]

    blocks = numbers(parts[0], fmt.scale)
    if blocks.shape not in (grid, ()):
        msg = f"{fmt.name} has scales of shape {grid} for {values.shape}; got {blocks.shape}"
        raise ValueError(msg)
    blocks = xp.broadcast_to(blocks, grid)
    if fmt.tensor_scale is not None:
        return Scales(blocks, numbers(parts[1], fmt.tensor_scale).reshape(-1)[:1])
    if fmt.affine:
        return Scales(blocks, zero_points=xp.broadcast_to(numbers(parts[1], None), grid))
    return Scales(blocks)


def _codes_as(x: Array, fmt: Format, cast: Cast) -> Array:
    """Return the codes that a library gives, those of its NaN included."""
    xp = array_module(x)
    source = xp.asarray(x, order="C")
    values = xp.empty_like(source)
    round_as(source, values, fmt, cast)
    codes = codes_of(values, fmt)
    if fmt.has_nan:
        codes = xp.where(xp.isnan(values), nan_codes(source, fmt, cast), codes)
    return codes.astype(code_dtype(fmt))[()]


def _checked(codes: npt.ArrayLike, fmt: Format) -> Array:
    """Return the codes as an array, or raise where one of them is no code of the format."""
    array: Any = array_module(codes).asarray(codes)
    if array.dtype.kind not in "iu":
        msg = f"expected integer codes of {fmt.name}; got dtype {array.dtype}: encode values first"
        raise TypeError(msg)
    if array.dtype.kind == "u" and array.dtype.itemsize * 8 == fmt.bits:
        return array  # type: ignore[no-any-return]
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high >= 1 << fmt.bits:
        hint = f"; view signed codes as {code_dtype(fmt)}" if low < 0 else ""
        wrong = low if low < 0 else high
        msg = f"expected codes of {fmt.name} in 0 .. {(1 << fmt.bits) - 1}; got {wrong}{hint}"
        raise ValueError(msg)
    return array  # type: ignore[no-any-return]
