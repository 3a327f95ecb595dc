"""Answers to the exercises of lesson 12."""


def smallest_fl(n):
    """Half a step, 2^-(FL + 1), has to be below n 2^-20; at a tie the even neighbour is 0."""
    return max(1, 20 - (n - 1).bit_length())
