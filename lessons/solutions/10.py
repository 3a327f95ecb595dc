"""Answers to the exercises of lesson 10."""


def updates_until_it_moves(k):
    """More than 2^-8 has to come together: half the gap above 1, a tie that goes to the even 1.

    What is left over is bf16 too: at 256 updates a further one is half its gap, and is lost.
    """
    if k < 8:
        return 1
    return 2 ** (k - 8) + 1 if k < 16 else 0
