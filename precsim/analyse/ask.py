"""Questions about one step of a recorded run: what differs, what is to blame, what has to stay high.

The functions of `precsim.analyse.diff`, `blame` and `search`, asked of a run, or the directory of
one, instead of a moment.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from precsim.analyse import blame as blaming
from precsim.analyse import diff as diffing
from precsim.analyse import search as searching
from precsim.analyse.moment import REFERENCE, Moment, Site
from precsim.analyse.recorded import moment_at
from precsim.analyse.trials import Trials
from precsim.analyse.whole_step import whole_step
from precsim.engine.policy import Policy
from precsim.observe.trace import matches, unmatched
from precsim.runs.files import RunError
from precsim.runs.run import Source, StoredRun, stored


def moment_of(run: StoredRun, step: int, *, update: bool = False) -> Moment:
    """Return the moment before a step, whose gradient is the loss's, or the update of the weights.

    Raises `RunError` for a step that the run has not reached.
    """
    moment = moment_at(run, step)
    return whole_step(run, moment) if update else moment


def sites_of(moment: Moment, op: str | None = None) -> list[Site]:
    """Return the sites that a glob names (None: all); raise `RunError` where there are none."""
    every = moment.sites()
    found = [site for site in every if op is None or matches(site.name, op)]
    if op is not None and not found:
        names = [site.name for site in every]
        msg = f"no op of that step's gradient matches {op!r}: {unmatched(op, names)}"
        raise RunError(msg)
    return found


def diff(
    run: Source, step: int, other: Source | None = None, against: Policy | str | None = None
) -> diffing.Diff:
    """Compare a recorded step, the optimizer included, with itself in float64, op by op.

    Weights, state, batch and loss scale are the run's on both sides.  With another run its policy
    is judged, and this run's is the truth; `against` is a truth to name.
    Raises `RunError` for a step that was not reached or a model of other sizes, `ValueError` where
    the two have no op in common.
    """
    run = stored(run)
    moment = moment_at(run, step)
    low, high = moment.policy, replace(REFERENCE, granularity=moment.policy.granularity)
    if other is not None:
        other = stored(other)
        theirs = moment_at(other, step)
        if theirs.model != moment.model:
            msg = (
                f"{other.path} has a model of other sizes: expected {moment.model}; "
                f"got {theirs.model}"
            )
            raise RunError(msg)
        low, high = theirs.policy, moment.policy
    if against is not None:
        high = replace(Policy.parse(against), arithmetic="exact")
    return diffing.diff(whole_step(run, moment), low, high)


def blame(run: Source, step: int, op: str | None = None, *, update: bool = False) -> blaming.Blame:
    """Return each op's share in the error of a step's gradient, or of its update of the weights.

    `op` is a glob for the ops in question.  Raises `RunError` as `moment_of` and `sites_of` do.
    """
    moment = moment_of(stored(run), step, update=update)
    return blaming.blame(moment, sites_of(moment, op))


def search(
    run: Source,
    step: int,
    tolerance: float,
    op: str | None = None,
    *,
    update: bool = False,
    to: str = "fp64",
    fresh: bool = False,
    on_trial: Callable[[int, int], None] | None = None,
) -> searching.Found:
    """Return the fewest ops to keep high so that a step's gradient, or update, meets a tolerance.

    What is tried is kept beside the run and used again, unless `fresh`; where it cannot be written,
    a warning says so.  Raises `RunError` as `moment_of` and `sites_of` do, `ValueError` for a
    tolerance that is not positive or an unknown format.
    """
    run = stored(run)
    moment = moment_of(run, step, update=update)
    sites = sites_of(moment, op)
    with _known(run, moment, to, fresh=fresh) as known:
        return searching.search(moment, tolerance, sites, to=to, known=known, on_trial=on_trial)


@contextmanager
def _known(run: StoredRun, moment: Moment, to: str, *, fresh: bool) -> Iterator[searching.Known]:
    """Open what has been tried before; where it cannot be written, remember in memory only."""
    try:
        trials = Trials(run.path, moment, to, fresh=fresh)
    except RunError as error:
        warnings.warn(f"what is tried is not kept: {error}", RuntimeWarning, stacklevel=4)
        memory: dict[frozenset[str], float] = {}
        yield memory
        return
    with trials:
        yield trials
