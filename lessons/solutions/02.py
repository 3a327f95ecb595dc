"""Answers to the exercises of lesson 02."""


def bits_for_sums(p):
    """Figueroa's theorem for addition; the square root needs one more, products one less."""
    return 2 * p + 1
