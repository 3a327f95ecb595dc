"""Quantization written out from the published rules, in code that shares nothing with precsim's."""

import numpy as np


def values_of(exponents, mantissa, bias, largest):
    """Return the non-negative values of a small float format, ascending, subnormals included."""
    found = [m * 2.0 ** (1 - bias - mantissa) for m in range(1 << mantissa)]
    found += [
        (1 + m / (1 << mantissa)) * 2.0 ** (e - bias)
        for e in range(1, 1 << exponents)
        for m in range(1 << mantissa)
    ]
    return np.array([v for v in found if v <= largest])


E4M3 = values_of(4, 3, 7, 448.0)
E5M2 = values_of(5, 2, 15, 57344.0)
E2M1 = values_of(2, 1, 1, 6.0)
INT8 = np.arange(128.0)


def nearest(x, values):
    """Round magnitudes to the nearest of `values`, ties to the even code; beyond the last, to it."""
    size = np.minimum(np.abs(x), values[-1])
    upper = np.clip(np.searchsorted(values, size), 1, len(values) - 1)
    below, above = size - values[upper - 1], values[upper] - size
    up = (above < below) | ((above == below) & (upper % 2 == 0))
    return np.copysign(np.where(up, values[upper], values[upper - 1]), x)


def power_below(x):
    """Return the largest powers of two that are not above positive x."""
    return np.exp2(np.frexp(x)[1] - 1.0)


def in_blocks(x, height, width, scale, values):
    """Quantize a matrix block by block; ``scale(amax)`` is what the elements are multiplied with."""
    out = np.empty_like(x)
    for top in range(0, x.shape[0], height):
        for left in range(0, x.shape[1], width):
            place = np.s_[top : top + height, left : left + width]
            factor = scale(np.abs(x[place]).max())
            out[place] = nearest(x[place] / factor, values) * factor
    return out


def power_of_two(values):
    """Return the rule of Float8BlockScaling: 1 / floor-to-a-power-of-two(largest / amax)."""
    return lambda amax: 1.0 / power_below(values[-1] / amax) if amax else 1.0


def in_e8m0(amax):
    """Return 2^k as Transformer Engine's float_to_e8m0 does: amax / 448 in float32, rounded up."""
    ratio = np.float32(np.float32(amax) * np.float32(1 / np.float32(448)))
    bits = int(ratio.view(np.uint32))
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    if mantissa and exponent != 254 and not (exponent == 0 and mantissa <= 0x400000):
        exponent += 1
    return 2.0 ** (exponent - 127)


def nvfp4(x, height, width, round_to=nearest):
    """Quantize as Transformer Engine's reference_nvfp4.py does, each step in float32."""
    one, tensor = np.float32(1), np.float32(np.abs(x).max())
    factor = np.float32(np.float32(448 * 6) / tensor)
    per_amax = factor * (one / np.float32(6))
    out = np.empty_like(x, np.float64)
    for top in range(0, x.shape[0], height):
        for left in range(0, x.shape[1], width):
            place = np.s_[top : top + height, left : left + width]
            amax = np.float32(np.abs(x[place]).max())
            block = np.float32(nearest(min(amax * per_amax, np.float32(448)), E4M3))
            encode = one / (block * (one / factor)) if block else np.finfo(np.float32).max
            codes = round_to((x[place].astype(np.float32) * encode).astype(np.float64), E2M1)
            out[place] = codes * float(block) * float(one / factor)
    return out


def cut(x, bits):
    """Keep the leading bits of each number."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.trunc(np.ldexp(fraction, bits)), exponent - bits)


def tensor_core(a, b):
    """Multiply as DeepSeek-V3 describes it: 32 products at once into 14 bits, after 128 into fp32."""
    outer = np.zeros((len(a), b.shape[1]))
    for start in range(0, a.shape[1], 128):
        inner = np.zeros_like(outer)
        for first in range(start, min(start + 128, a.shape[1]), 32):
            last = min(first + 32, a.shape[1])
            inner = cut(inner + a[:, first:last] @ b[first:last], 14)
        outer = (outer + inner).astype(np.float32).astype(np.float64)
    return outer


def bf16(x):
    """Round to 8 bits, ties to even (no number here is near the ends of bf16's range)."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(fraction * 256), exponent - 8).astype(np.float32)


def hadamard(size, signs):
    """Return the rotation: sign_i (-1)^popcount(i & j) / sqrt(size)."""
    bits = [[(i & j).bit_count() for j in range(size)] for i in range(size)]
    return np.array(signs)[:, None] * (-1.0) ** np.array(bits) / np.sqrt(size)


TE_SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
