"""A step, ready to be looked at: what its ops did, and the moment before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np

from precsim.analyse.health import complaint
from precsim.analyse.moment import Moment, moment_before
from precsim.engine.context import using
from precsim.engine.dispatch import Event
from precsim.engine.policy import Policy
from precsim.observe.counters import OpCounts, count
from precsim.observe.shadow import local_error
from precsim.observe.trace import Level
from precsim.runs.columns import OpTable
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.loop import states_before, surroundings
from precsim.runs.replay import recorded_ops
from precsim.runs.run import StoredRun
from precsim.runs.trainer import make_trainer

_PLAIN = tuple(f.name for f in fields(OpCounts) if f.name != "histogram")


@dataclass(frozen=True)
class Op:
    """One op of a step: its counts, histogram included, and its local error in units of u.

    `by_chance`: its results are rounded stochastically.
    """

    counts: OpCounts
    err_u: float
    by_chance: bool = False

    @property
    def complaint(self) -> str:
        """What is wrong with its results (`precsim.analyse.health.complaint`)."""
        return complaint(self.counts, by_chance=self.by_chance)


def ops_of(run: StoredRun, step: int) -> list[Op]:
    """Return the ops of a step in the order in which they ran, with histograms.

    From the trace where it has them, else the step is run again.  Raises `RunError` for a step that
    was not recorded.
    """
    table = recorded_ops(run.path, step)
    if not (len(table) and Level.parse(run.config.observe).includes("hist")):
        table = run.replay(step, observe="shadow", verify=False).ops
    return list(_ops(table, run.policy_at(step)))


def _ops(table: OpTable, policy: Policy) -> Iterator[Op]:
    for row, histogram in zip(table.rows(), table["histogram"], strict=True):
        counts = OpCounts(**{name: row[name] for name in _PLAIN}, histogram=histogram)
        measured = row["err_rel"]
        error = counts.relative_error if np.isnan(measured) else measured
        by_chance = counts.precision(policy).by_chance
        yield Op(counts, error / counts.u if counts.u else 0.0, by_chance)


def moment_at(run: StoredRun, step: int) -> Moment:
    """Return the moment before a step: weights, the first micro-batch, policy and loss scale.

    In arithmetic "exact", whatever the run's own was, so that it can be compared with float64.
    Raises `RunError` for a step that the run has not reached.
    """
    return next(moments_at(run, [step]))


def moments_at(run: StoredRun, steps: Iterable[int]) -> Iterator[Moment]:
    """Yield the moments before some steps, which ascend, each to be used before the next is asked for.

    Raises as `moment_at` does.
    """
    steps = list(steps)
    states = states_before(run.path, steps, run.corpus)
    for step, trainer in zip(steps, states, strict=True):
        yield moment_before(
            step, run.config, trainer.model, trainer.batches, trainer.policy,
            trainer.scaler.scale, trainer.delays.histories,
        )  # fmt: skip


def seen(event: Event) -> Op:
    """Return what an observer sees of an op that has just run."""
    row = count(event)
    error = local_error(event) / row.u if row.u else 0.0
    return Op(row, error, event.precision.by_chance)


class _Stopped(Exception):
    """The op that was just seen is in trouble."""


def walk(config: TrainConfig, corpus: Corpus, *, stop: bool = False) -> list[Op]:
    """Run the first step of a config and return its ops in order; `stop` at the first in trouble.

    Raises `DataError` where the text does not fill a batch.
    """
    ops: list[Op] = []

    def note(event: Event) -> None:
        ops.append(seen(event))
        if stop and ops[-1].complaint:
            raise _Stopped

    with surroundings(config):
        trainer = make_trainer(config, corpus)
        with suppress(_Stopped), using(step=0, observers=(note,)):
            trainer.step(0)
    return ops
