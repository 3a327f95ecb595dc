"""Answers to the exercises of lesson 11."""

import precsim as ps


def largest_lost(k):
    """2^-k g^2 is zero up to 2^-25, a tie that goes to the even zero: g up to 2^((k - 25) / 2)."""
    return float(ps.quantize(2 ** ((k - 25) / 2), "fp16", rounding="toward_zero"))
