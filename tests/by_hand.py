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


def hadamard(size, signs):
    """Return the rotation: sign_i (-1)^popcount(i & j) / sqrt(size)."""
    bits = [[(i & j).bit_count() for j in range(size)] for i in range(size)]
    return np.array(signs)[:, None] * (-1.0) ** np.array(bits) / np.sqrt(size)


TE_SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
