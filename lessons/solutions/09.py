"""Answers to the exercises of lesson 09."""

from math import floor, log2


def skips_before_the_first_step(start):
    """65520 is the first number that rounds to infinity in fp16; 2^17 is the last scale below."""
    return max(0, start - floor(log2(65520 / 0.2831)))
