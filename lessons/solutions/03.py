"""Answers to the exercises of lesson 03."""


def count_in_chunks(n, chunk, p):
    """A count of equal addends stops at 2^p of them: in a chunk, and again over the chunks."""
    return float(min(chunk, 2**p) * min(n // chunk, 2**p))
