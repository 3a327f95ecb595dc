"""Search: the smallest set of sites that must stay in high precision.

Delta debugging (Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input"),
on sites instead of input characters: start from all sites high, drop ever smaller parts of them,
keep what still meets the tolerance.  The result is 1-minimal: dropping any one site of it breaks
the tolerance.  It need not be the smallest of all.

Two gates first: with everything low the tolerance must fail (else there is nothing to search), and
with every site high it must hold (else no set of these sites can help).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from precsim.analyse.moment import Moment, Site, promote, relative_error
from precsim.engine.policy import Policy


@dataclass(frozen=True)
class Found:
    """The outcome: `keep` the sites to promote, with the error then, and the policy that does it.

    `all_low` and `all_high` are the gates' errors; `keep` is empty where a gate did not open, and
    `reason` says which.  `evaluations` counts the steps that were run.
    """

    keep: tuple[Site, ...]
    error: float
    tolerance: float
    all_low: float
    all_high: float
    evaluations: int
    policy: Policy | None
    reason: str = ""


class Known(Protocol):
    """Errors by the names of the sites that were high: a dict, or `precsim.analyse.trials.Trials`."""

    def get(self, sites: frozenset[str], /) -> float | None:
        """Return the error, or None where these have not been tried."""

    def __setitem__(self, sites: frozenset[str], error: float, /) -> None: ...


@dataclass
class _Evaluator:
    """Evaluates sets of sites, remembering each answer."""

    moment: Moment
    tolerance: float
    to: str
    known: Known
    listener: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        self.truth = self.moment.reference()
        self.ran = 0

    def error(self, sites: list[Site]) -> float:
        key = frozenset(s.name for s in sites)
        if (error := self.known.get(key)) is None:
            self.ran += 1
            promoted = promote(self.moment.policy, sites, self.to)
            error = relative_error(self.moment.gradients(promoted), self.truth)
            self.known[key] = error
            if self.listener is not None:
                self.listener(self.ran, len(sites))
        return error

    def passes(self, sites: list[Site]) -> bool:
        return self.error(sites) <= self.tolerance


def search(
    moment: Moment,
    tolerance: float,
    sites: list[Site] | None = None,
    *,
    to: str = "fp64",
    known: Known | None = None,
    on_trial: Callable[[int, int], None] | None = None,
) -> Found:
    """Return a 1-minimal set of sites to keep high so that the gradient's error <= tolerance.

    `to` is the format of a site that is high.  `known` is a cache of earlier answers to the same
    question, updated in place: pass it again to resume.  `on_trial` hears (evaluations so far, size
    of the set).  Raises `ValueError` for a tolerance that is not a positive number, or an unknown
    format.
    """
    if not (isinstance(tolerance, Real) and 0 < tolerance < float("inf")):
        msg = f"search needs a tolerance > 0 for the gradient's relative error; got {tolerance!r}"
        raise ValueError(msg)
    candidates = list(sites or moment.sites())
    cache: dict[frozenset[str], float] = {}
    trial = _Evaluator(moment, tolerance, to, cache if known is None else known, on_trial)
    low, high = trial.error([]), trial.error(candidates)

    def outcome(keep: list[Site], reason: str = "") -> Found:
        policy = promote(moment.policy, keep, to) if not reason else None
        error = trial.error(keep)
        return Found(tuple(keep), error, tolerance, low, high, trial.ran, policy, reason)

    if low <= tolerance:
        return outcome([], f"all sites low already meet the tolerance ({low:.3g})")
    if high > tolerance:
        return outcome(
            [],
            f"all sites high still miss the tolerance ({high:.3g}): no set of sites can meet it",
        )
    return outcome(_minimise(candidates, trial.passes))


def _minimise(sites: list[Site], passes: Callable[[list[Site]], bool]) -> list[Site]:
    """Return a 1-minimal subset that passes (ddmin; the whole set does)."""
    parts = 2
    while len(sites) > 1:
        size = -(-len(sites) // parts)
        chunks = [sites[i : i + size] for i in range(0, len(sites), size)]
        for i, chunk in enumerate(chunks):
            rest = [s for j, other in enumerate(chunks) if j != i for s in other]
            if passes(chunk):
                sites, parts = chunk, 2
                break
            if passes(rest):
                sites, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(sites):
                break
            parts = min(len(sites), 2 * parts)
    return [] if len(sites) == 1 and passes([]) else sites
