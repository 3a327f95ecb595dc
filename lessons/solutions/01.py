"""Answers to the exercises of lesson 01."""


def first_that_is_missing(man_bits):
    """Up to 2^(m + 1) the gap is 1 or less; the next number there is 2 further."""
    return 2 ** (man_bits + 1) + 1
