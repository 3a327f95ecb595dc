"""Answers to the exercises of lesson 04."""


def stops_at(k, r):
    """At 2^e the addend is 2^-(k + e) gaps, and a coin of r bits sees it while k + e <= r."""
    return float(2 ** max(0, r - k + 1))
