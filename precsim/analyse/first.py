"""The gradient of the first step under a policy, beside float64's at the same weights."""

from __future__ import annotations

from precsim.analyse.drift import Drift, compare
from precsim.analyse.moment import Moment, moment_before, unit
from precsim.engine.context import using
from precsim.engine.delayed import Delays
from precsim.engine.policy import Policy
from precsim.nn import scaling
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.trainer import make_trainer


def first_moment(config: TrainConfig, corpus: Corpus) -> Moment:
    """Return the first step of a config, its weights as they are drawn, before any rounding.

    Raises what `precsim.train` raises where the config and the text do not fit.
    """
    with using("fp64", seed=config.seed, observers=()):
        trainer = make_trainer(config.change(policy="fp64"), corpus)
    policy, scale = Policy.parse(config.policy), scaling.parse(config.loss_scale).scale
    return moment_before(0, config, trainer.model, trainer.batches, policy, scale)


def settled(moment: Moment) -> Moment:
    """Return a moment whose factors of delayed scaling follow from earlier passes over it.

    The first pass has none, and a gradient that vanishes for want of one leaves nothing to learn
    from for what lies before it: there are as many passes as tensors on the way back, and two more.
    """
    delays = Delays(moment.delays)
    for _ in range(4 * moment.model.layers + 2):
        moment.gradients_with(delays)
        if not delays.seen:
            return moment
        delays.advance(moment.policy.delayed)
    return moment.at(delays=delays.histories)


def first_gradient(config: TrainConfig, corpus: Corpus) -> Drift:
    """Return the error of the first step's gradient, in arithmetic "exact", of all parameters."""
    moment = settled(first_moment(config, corpus))
    return compare(moment.gradients(), moment.reference(), unit(moment.policy))
