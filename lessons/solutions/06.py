"""Answers to the exercises of lesson 06."""

from math import sqrt

import precsim as ps


def largest_without_overflow(k):
    """65520 is the first number that rounds to infinity; the square may be anything below its 2^-k.

    Rounding the square first changes nothing: 65520 is halfway between two numbers, whatever the
    power of two, and no square of an fp16 number is 65520 / 2^k.
    """
    return float(ps.quantize(sqrt(65520 / 2**k), "fp16", "toward_zero"))
