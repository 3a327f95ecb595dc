"""What each level of watching costs, as it was measured: for the help, and for whoever asks.

The numbers are in costs.json, which ``python -m tests.benchmarks --readme`` writes together with the
README's table of them: seconds of a training step at each level, and how many times as long that is
as the same step with nobody watching, from the quickest format measured to the slowest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("costs.json")

CASES = {
    "compiled": "compiled kernels",
    "exact": "NumPy, exact arithmetic",
    "fast": "NumPy, fast arithmetic",
}


class Cost(NamedTuple):
    """A step at one level: seconds, and times one that nobody watches; each from, and to."""

    seconds: tuple[float, float]
    ratio: tuple[float, float]


@cache
def costs() -> dict[str, dict[str, Cost]]:
    """Return the costs by level, and by what computes (`CASES`)."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        level: {
            case: Cost(tuple(cost["seconds"]), tuple(cost["ratio"])) for case, cost in cases.items()
        }
        for level, cases in stored.items()
    }


def span(ends: Iterable[float], digits: int = 1) -> str:
    """Return "1.2", or "1.2 to 1.4"."""
    low, high = (f"{end:.{digits}f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def sentence() -> str:
    """Say what each level costs, in one sentence."""
    parts = []
    for level, cases in costs().items():
        ratios = [end for cost in cases.values() for end in cost.ratio]
        parts.append(f"{level} {span((min(ratios), max(ratios)))}")
    return (
        "A step takes, as a multiple of one that nobody watches: "
        f"{', '.join(parts)}, by kernels, arithmetic and format (README, Speed)."
    )
