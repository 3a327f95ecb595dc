"""Answers to the exercises of lesson 15."""


def mean_error(k):
    """All but the tie cancel in pairs; the tie, one in k, is half a gap."""
    return 1 / (2 * k)
