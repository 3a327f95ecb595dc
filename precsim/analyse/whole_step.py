"""A whole step of training, the optimizer's part included, frozen like a moment.

Its "gradient" is what the step does to the weights: all micro-batches, unscaling, clipping, the
optimizer and the storing of its results.  So whatever asks a moment where its gradient's error comes
from can ask where the update's comes from, and which op to keep high so that it is not lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from precsim.analyse.moment import WEIGHTS, Moment, Site, Values
from precsim.analyse.twins import difference, kept_weights
from precsim.engine.context import Observer, using
from precsim.engine.delayed import Delays
from precsim.engine.policy import Policy
from precsim.runs.checkpoint import capture, restore
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.loop import surroundings
from precsim.runs.npz import Arrays
from precsim.runs.run import StoredRun
from precsim.runs.trainer import make_trainer


@dataclass(frozen=True, kw_only=True)
class WholeStep(Moment):
    """A moment whose `gradients` are the weights' changes, in float64, by parameter.

    `state` is a checkpoint of the trainer before the step.  A step that the loss scaler skips
    changes nothing.  What Kahan's compensation keeps aside counts as part of the weights.  Changes
    of `parameters`, `x`, `y`, `scale` and `weight` have no effect: all of that is in the state.
    """

    config: TrainConfig
    corpus: Corpus = field(repr=False)
    state: Arrays = field(repr=False)

    def gradients_with(
        self,
        delays: Delays,
        policy: Policy | str | None = None,
        observers: Iterable[Observer] = (),
    ) -> Values:
        """Return what the step does to the weights under `policy` (None: its own), with `delays`."""
        chosen = self.policy if policy is None else Policy.parse(policy)
        with surroundings(self.config):
            trainer = make_trainer(self.config, self.corpus, init=False)
            restore(trainer, self.state)
            trainer.delays = delays
            trainer.adopt(replace(chosen, initial_weights=None))
            before = kept_weights(trainer)
            key = {"seed": self.seed, "step": self.step, "delays": delays}
            with using(trainer.policy, observers=tuple(observers), **key):
                trainer.update(self.step)
        return difference(kept_weights(trainer), before)

    def sites(self) -> list[Site]:
        """Return every place where the step rounds.

        Where the optimizer updates the weights themselves, each update is a site, and the weights
        as a whole are none.
        """
        found = super().sites()
        return found if self.policy.has_master else [site for site in found if site != WEIGHTS]


def whole_step(run: StoredRun, moment: Moment) -> WholeStep:
    """Return the step of a recorded run that begins at a moment (`precsim.analyse.recorded`)."""
    trainer = run.at(moment.step)
    known: Mapping[str, object] = {name: getattr(moment, name) for name in Moment.__match_args__}
    return WholeStep(
        **known,  # type: ignore[arg-type]
        config=run.config,
        corpus=run.corpus,
        state=capture(trainer, moment.step, {}),
    )
