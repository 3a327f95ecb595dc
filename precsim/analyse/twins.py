"""A recorded run beside its twins: how far rounding has taken it, and how far chaos would have.

The run is trained again, to the bit, and with it, on the same batches and with the same dropout:

- its *twin*, the same training in float64 from the same weights and the same optimizer's state;
- the *control*, a twin whose weights began one unit in the last place of float64 away.

At some steps a float64 *shadow* takes the very step that the run takes, from the run's own weights
and state.  Gradients are compared unscaled, before clipping; see `precsim.analyse.drift`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np

from precsim.analyse.drift import Drift, Split, compare, distance, norm, perturbed, split_of
from precsim.analyse.moment import REFERENCE, Values, coarsest, unit
from precsim.backend import array_module
from precsim.engine.context import using
from precsim.engine.delayed import Delays
from precsim.engine.policy import Policy
from precsim.engine.tensor import Tensor
from precsim.formats.registry import format
from precsim.observe.counters import Counters, total
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.files import RunError
from precsim.runs.loop import surroundings
from precsim.runs.run import Source, stored
from precsim.runs.trainer import StepResult, Trainer, make_trainer

POINTS = 16
"""Steps of a run that are measured, if nobody says which."""

CHAOTIC = 10.0
"""How many times as far, relative to the way, the control must get for a run to be called chaotic."""

ONE_WAY = 0.25
"""Part of the updates' error that must lie along the updates, on average, to be called a bias: of
an error that falls any way, one in the square root of the number of weights does."""


@dataclass(frozen=True)
class Point:
    """One step of a run beside its twins.

    `gradient`: of the run's gradient from float64's at the same weights.  `angle`: between it and
    the twin's gradient, in radians.  `split`: of their difference, into rounding now and weights
    already moved.  `update`: of what the step did to the weights from what a float64 step would
    have done from the same state; `swamped`: the share of the nonzero updates that changed nothing.

    After the step: `distance` is the way between the run's weights and the twin's, `control` that
    between the control's and the twin's, both relative to the way that the twin has come.  `growth`:
    how many times as far the control is as it was when it began.  `chaos`: the error that a measured
    step put into the weights, grown as the control has grown since, relative to the same way, for
    the step where that is largest: what any one perturbation of that size has become by now.

    `gradients`, `updates` and `lost` say the same of each parameter.  `undefined` says where values
    are not finite ("" where all are); then the drift is NaN, and never an average of what is left.
    """

    step: int
    skipped: bool
    loss: float
    twin_loss: float
    gradient: Drift
    angle: float
    split: Split
    update: Drift
    swamped: float
    distance: float
    control: float
    growth: float
    chaos: float
    undefined: str
    gradients: dict[str, Drift] = field(repr=False)
    updates: dict[str, Drift] = field(repr=False)
    lost: dict[str, float] = field(repr=False)


@dataclass(frozen=True)
class Drifts:
    """The drift of a run at the steps that were measured; `format` and `u` are its coarsest's."""

    points: tuple[Point, ...]
    format: str
    u: float

    def __repr__(self) -> str:
        last = self.points[-1]
        return (
            f"Drifts({len(self.points)} steps measured: {self.verdict}; after step {last.step} "
            f"{last.distance:.3g} of the twin's way apart)"
        )

    @property
    def bias(self) -> float:
        """The part of the updates' errors that lies along the updates: -1 to 1, < 0 for too short."""
        taken = [p.update for p in self.points if not p.skipped and np.isfinite(p.update.rho)]
        whole = sum(update.rho for update in taken)
        return sum(update.bias for update in taken) / whole if whole else 0.0

    @property
    def verdict(self) -> str:
        """What took the weights away from the twin's: "nothing", "chaos", "bias" or "rounding".

        chaos: the control's distance has grown faster than the way, and any perturbation as large
        as one step's error would have gone as far as the run.  bias: the errors of the updates
        point one way, so they add up.  rounding: neither explains it.  "undefined" where the
        weights are no longer finite.
        """
        first, last = self.points[0], self.points[-1]
        if not np.isfinite(last.distance):
            return "undefined"
        if not last.distance:
            return "nothing"
        grown = last.control / first.control if first.control else 0.0
        if grown >= CHAOTIC and last.chaos >= last.distance:
            return "chaos"
        return "bias" if abs(self.bias) >= ONE_WAY else "rounding"


def drifts(
    run: Source,
    every: int | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> Drifts:
    """Train a recorded run and its twins again, and measure every so many steps and the last.

    It takes two to three times as long as the run.  `every` None measures `POINTS` steps,
    or up to twice as many.  `seed`
    draws the control's perturbation.  `on_step` hears (steps done, the run's loss).

    Raises `RunError` for a run without a step, `ValueError` for an `every` below 1, `DataError`
    where the run's text is gone.
    """
    run = stored(run)
    start, count = run.manifest.start, len(run.records)
    if not count:
        msg = f"{run.path} has no step yet: there is nothing that could have drifted"
        raise RunError(msg)
    if every is not None and not (isinstance(every, Integral) and every >= 1):
        msg = f"expected a whole number of steps, 1 or more, for every; got {every!r}"
        raise ValueError(msg)
    every = every or max(1, count // POINTS)
    race = _Race(run.at(start), run.corpus, seed)
    points: list[Point] = []
    for step in range(start, start + count):
        if (step - start) % every == 0 or step == start + count - 1:
            points.append(race.measure(step))
            loss = points[-1].loss
        else:
            loss = race.advance(step)[0].loss
        if on_step is not None:
            on_step(step - start + 1, loss)
    return Drifts(tuple(points), coarsest(run.policy), unit(run.policy))


class _Race:
    """A run, its twin and its control, all before the same step; and the shadow."""

    def __init__(self, run: Trainer, corpus: Corpus, seed: int) -> None:
        self.run = run
        config = _in_float64(run.config)
        self.twin, self.control, self.shadow = (_trainer(config, corpus) for _ in range(3))
        for other in (self.twin, self.control):
            _take_over(run, other)
        self.start = _weights(self.twin)
        _set_weights(self.control, perturbed(self.start, seed))
        self.nudge = norm(difference(_weights(self.control), self.start))
        self.worst = 0.0  # error of a step over the control's distance then

    def advance(self, step: int) -> tuple[StepResult, StepResult, Counters]:
        """Do one step of all three; return the run's and the twin's, and the run's updates."""
        updates = Counters(histograms=False, keep=lambda event: event.op == "apply_update")
        mine = _step(self.run, step, updates)
        twin = _step(self.twin, step)
        _step(self.control, step)
        return mine, twin, updates

    def measure(self, step: int) -> Point:
        """Do one step of all three, and say where they are."""
        u = unit(self.run.policy)
        _take_over(self.run, self.shadow)
        measured, here, there = (_gradients(t, step) for t in (self.run, self.shadow, self.twin))
        before, stored = _weights(self.shadow), kept_weights(self.run)
        mine, twin, counters = self.advance(step)
        _step(self.shadow, step)
        made = difference(kept_weights(self.run), stored)
        wanted = difference(_weights(self.shadow), before)
        weights, twins = _weights(self.run), _weights(self.twin)
        way = norm(difference(twins, self.start))
        apart = norm(difference(_weights(self.control), twins))
        error = norm(difference(made, wanted))
        if apart and np.isfinite(error):
            self.worst = max(self.worst, error / apart)
        return Point(
            step=step,
            skipped=mine.skipped,
            loss=mine.loss,
            twin_loss=twin.loss,
            gradient=compare(measured, here, u),
            angle=compare(measured, there, u).angle,
            split=split_of(measured, here, there),
            update=compare(made, wanted, u),
            swamped=total(counters.rows).swamped_share,
            distance=distance(weights, twins, self.start),
            control=apart / way if way else 0.0,
            growth=apart / self.nudge if self.nudge else 0.0,
            chaos=self.worst * apart / way if way else 0.0,
            undefined=_where(measured) or _where(weights),
            gradients=_each(measured, here, u),
            updates=_each(made, wanted, u),
            lost={row.scope: row.swamped_share for row in counters.rows},
        )


def _in_float64(config: TrainConfig) -> TrainConfig:
    """Return the same training in float64: with no loss scale, and all of the optimizer's state."""
    granularity = Policy.parse(config.policy).granularity
    optimizer = "adamw" if config.optimizer == "adamw8bit" else config.optimizer
    return config.change(
        policy=str(replace(REFERENCE, granularity=granularity)), loss_scale="none",
        precision_schedule="none", optimizer=optimizer, weights_update="plain",
        eval_every=config.steps, observe="off",
    )  # fmt: skip


def _trainer(config: TrainConfig, corpus: Corpus) -> Trainer:
    with surroundings(config):
        return make_trainer(config, corpus, init=False)


def _take_over(old: Trainer, new: Trainer) -> None:
    """Give a float64 trainer the weights and the optimizer's state of another.

    What Kahan's compensation has kept aside belongs to the weights.
    """
    _set_weights(new, kept_weights(old))
    new.optimizer.steps = old.optimizer.steps
    for slot in new.optimizer.slots:
        states = old.optimizer.state[slot].items()
        new.optimizer.state[slot] = {name: _wide(state) for name, state in states}


def _wide(tensor: Tensor) -> Tensor:
    return Tensor(tensor.data.astype(np.float64), format("fp64"))


def _set_weights(trainer: Trainer, weights: Values) -> None:
    for name, parameter in trainer.model.parameters.items():
        xp = array_module(parameter.data)
        parameter.data, parameter.format = xp.asarray(weights[name]), format("fp64")


def _weights(trainer: Trainer) -> Values:
    """Return copies of the weights, in float64."""
    return {n: np.array(p.numpy(), np.float64) for n, p in trainer.model.parameters.items()}


def kept_weights(trainer: Trainer) -> Values:
    """Return the weights, and what Kahan's compensation has kept of them aside, if there is any."""
    weights = _weights(trainer)
    for name, rest in trainer.optimizer.state.get("kahan", {}).items():
        weights[name] += rest.numpy()
    return weights


def _step(trainer: Trainer, step: int, *observers: Counters) -> StepResult:
    with surroundings(trainer.config, observers), using(step=step):
        return trainer.step(step)


def _gradients(trainer: Trainer, step: int) -> Values:
    """Return the gradients of a step that is about to be taken: in float64, unscaled."""
    delays, trainer.delays = trainer.delays, Delays(trainer.delays.histories)  # seen again then
    with surroundings(trainer.config), using(trainer.policy, step=step, delays=trainer.delays):
        _, gradients = trainer.scaled_gradients(step)
    trainer.delays = delays
    factor = trainer.config.micro_batches / trainer.scaler.scale
    return {n: np.asarray(g.numpy(), np.float64) * factor for n, g in gradients.items()}


def difference(a: Values, b: Values) -> Values:
    """Return a - b for each tensor; what is not finite stays so."""
    with np.errstate(invalid="ignore"):
        return {name: a[name] - b[name] for name in b}


def _each(measured: Values, truth: Values, u: float) -> dict[str, Drift]:
    return {n: compare({n: measured[n]}, {n: truth[n]}, u) for n in truth if n in measured}


def _where(values: Values) -> str:
    """Say where values are not finite: "3 not finite in blocks.0.fc1.weight", or ""."""
    for name, array in values.items():
        if bad := array.size - int(np.count_nonzero(np.isfinite(array))):
            return f"{bad} not finite in {name}"
    return ""
