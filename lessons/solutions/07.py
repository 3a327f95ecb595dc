"""Answers to the exercises of lesson 07."""


def largest_lost_update(code):
    """Half a gap is a tie, which goes to the even code: an even weight stays, an odd one moves."""
    exponent = (code >> 10) - 15
    half_gap = 2.0 ** (exponent - 11)
    return half_gap if code % 2 == 0 else half_gap / 2
