"""Answers to the exercises of lesson 08."""

from itertools import accumulate


def smallest_scale(counts):
    """Exponent e is saved from k = -25 - e on; drop the smallest while at most 1 % is dropped."""
    allowed = 0.01 * sum(counts)
    dropped = sum(1 for so_far in accumulate(counts) if so_far <= allowed)
    return max(0, 15 - dropped)
