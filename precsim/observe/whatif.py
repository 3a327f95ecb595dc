"""What-if: what a recorded step would lose in another format or at another loss scale.

An exponent histogram of the exact results is enough to say, without running again, which share
would flush to zero, be subnormal or overflow, for every format and every power-of-two scale: the
scale only shifts the histogram.  It is a statement about these values: what a lost value does to
the ops after it, only a run can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precsim.formats.format import Format
from precsim.observe.counters import HIGHEST, LOWEST, OpCounts

Histogram = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Loss:
    """Shares of the nonzero finite values: flushed to zero, subnormal, beyond the largest.

    A bin holds a whole binade.  Of the binade just below half the smallest value everything goes
    to zero; of the one in which that half lies, values round up; of the top one, all count as in
    range, although those past the largest significand overflow.
    """

    flushed: float
    subnormal: float
    overflowed: float


def what_if(counts: OpCounts | Histogram, fmt: Format, scale: float = 1.0) -> Loss:
    """Return what `fmt` would lose of the recorded values, multiplied by `scale` (a power of two).

    No values give no loss.  Raises `ValueError` without a histogram, or for another scale.
    """
    histogram = counts.histogram if isinstance(counts, OpCounts) else counts
    if histogram is None:
        msg = "what-if needs an exponent histogram: record with histograms"
        raise ValueError(msg)
    fraction, shift = np.frexp(scale)
    if fraction != 0.5:
        msg = f"what-if shifts exponents, so the scale must be a power of two; got {scale}"
        raise ValueError(msg)
    exponents = np.arange(LOWEST, HIGHEST + 1) + int(shift) - 1
    total = int(histogram.sum())
    if total == 0:
        return Loss(0.0, 0.0, 0.0)
    smallest = int(np.frexp(fmt.smallest_subnormal)[1]) - 1
    flushed = exponents < smallest - (1 if fmt.subnormals else 0)
    subnormal = (exponents < fmt.emin) & ~flushed
    overflowed = exponents > fmt.emax
    return Loss(
        *(float(histogram[which].sum()) / total for which in (flushed, subnormal, overflowed))
    )
