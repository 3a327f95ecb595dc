"""Answers to the exercises of lesson 14."""


def bits_more(now, wanted):
    """The least n with 4^n >= now / wanted: half the bits of that, rounded up, rounded up."""
    times = -(-now // wanted)
    return ((times - 1).bit_length() + 1) // 2
