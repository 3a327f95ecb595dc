"""Answers to the exercises of lesson 05."""


def chunked_count(n, p, c):
    """A register of p bits counts to 2^p and stops: 2^p + 1 needs another bit, and is cut."""
    most = 2**p
    return n // c * min(c, most) + min(n % c, most)
