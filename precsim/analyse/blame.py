"""Blame: which ops the gradient's error comes from.

Two questions that have the same answer only while errors are small and add up: *alone*, the error
when nothing but this site is low; *without*, the error that is left when everything but this site
is.  When underflow interacts (one op flushes what the next would have flushed anyway) they differ,
so both are shown, and the sum of alone^2 beside the total tells how far to trust the shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from precsim.analyse.moment import Moment, Site, only, promote, relative_error, unit


@dataclass(frozen=True)
class Share:
    """One site's part in the error of the gradient (relative to the float64 gradient).

    `alone`: error with only this site in its format.  `share`: alone^2 over the sum of all alone^2.
    `without`: error with only this site in fp64.  `removes`: how much smaller that is, 0 to 1
    (negative where the site's rounding happens to cancel others').
    """

    site: Site
    alone: float
    share: float
    without: float
    removes: float


@dataclass(frozen=True)
class Blame:
    """The answer for one moment: total error, unit roundoff, and the sites, worst first."""

    total: float
    u: float
    shares: tuple[Share, ...]

    def __repr__(self) -> str:
        first = f": {self.worst(1)[0].site.name} first" if self.shares else ""
        error = f"error {self.total:.3g} = {self.total / self.u:.3g} u"
        return f"Blame({error}, {len(self.shares)} sites{first})"

    @property
    def accounted(self) -> float:
        """Sum of alone^2 over total^2: near 1 where errors add up independently."""
        return sum(s.alone**2 for s in self.shares) / self.total**2 if self.total else 0.0

    def worst(self, k: int = 5) -> tuple[Share, ...]:
        """Return the k sites whose promotion removes most, then those with the largest share."""
        return tuple(sorted(self.shares, key=lambda s: (-s.removes, -s.share))[:k])


def blame(moment: Moment, sites: Iterable[Site] | None = None) -> Blame:
    """Return each site's share in the error of the moment's gradient (None: of every site).

    Runs the step twice per site.  Errors are infinite where a gradient is not finite.
    """
    truth = moment.reference()
    asked = moment.sites() if sites is None else list(sites)
    exact = replace(moment.policy, arithmetic="exact")
    total = relative_error(moment.gradients(exact), truth)
    alone = [relative_error(moment.gradients(only(moment.policy, [s])), truth) for s in asked]
    without = [relative_error(moment.gradients(promote(exact, [s])), truth) for s in asked]
    finite = sum(a**2 for a in alone if a < float("inf")) or 1.0
    shares = tuple(
        Share(s, a, _share(a, finite), w, _removed(total, w))
        for s, a, w in zip(asked, alone, without, strict=True)
    )
    return Blame(total, unit(moment.policy), shares)


def _share(alone: float, sum_of_squares: float) -> float:
    return 1.0 if alone == float("inf") else alone**2 / sum_of_squares


def _removed(total: float, without: float) -> float:
    if total == float("inf"):
        return 0.0 if without == float("inf") else 1.0
    return (total - without) / total if total else 0.0
