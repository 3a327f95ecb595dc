"""The gradient of the first step under a policy, beside float64's at the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from precsim.analyse.drift import Drift, compare
from precsim.analyse.moment import Moment, unit
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
    x, y = trainer.batches.train(0)
    weights = trainer.model.parameters.items()
    return Moment(
        model=trainer.model.config,
        parameters={name: np.asarray(w.numpy(), np.float64) for name, w in weights},
        x=x,
        y=y,
        policy=replace(Policy.parse(config.policy), arithmetic="exact"),
        scale=scaling.parse(config.loss_scale).scale,
        weight=1 / (config.accumulation * config.micro_batches),
        seed=config.seed,
    )


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
