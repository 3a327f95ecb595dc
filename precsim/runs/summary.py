"""What a run comes to: the row that tables print, and the numbers that verdicts are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite, log
from typing import Any

from precsim.engine.policy import Policy
from precsim.observe.counters import total
from precsim.runs.lines import plain
from precsim.runs.results import Run, Trouble


@dataclass(frozen=True)
class Summary:
    """What a run came to.  Losses are nats per token, NaN once the weights are destroyed.

    `loss`: mean of the last 20 training losses. `guess`: loss of guessing evenly, ln V.
    `flushed`: share of the nonzero results of backward ops that became zero, over all steps that
    were observed. `lost_updates`: share of the nonzero weight updates that changed nothing.  Both
    are NaN where no step was observed.
    `scales`: first and last loss scale. `chance_gradients`, `chance_weights`: whether they round
    stochastically, so that what is flushed or lost comes back on average.
    """

    steps: int
    loss: float
    valid_loss: float
    guess: float
    flushed: float
    lost_updates: float
    skipped: int
    scales: tuple[float, float]
    chance_gradients: bool
    chance_weights: bool
    trouble: Trouble | None
    died_at: int | None

    @property
    def diverged(self) -> bool:
        """Whether the run ended in weights or losses that are not numbers."""
        return self.died_at is not None or not isfinite(self.loss)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return plain(asdict(self) | {"diverged": self.diverged})  # type: ignore[no-any-return]


def summarize(run: Run) -> Summary:
    """Return what a run came to, finished or not; one without a single step has NaN losses."""
    policy = Policy.parse(run.config.policy)
    stored = policy.master_weights if policy.has_master else policy.weights
    scales = [record.scale for record in run.records] or [1.0]
    unseen = float("nan")
    return Summary(
        steps=len(run.records),
        loss=run.final_loss(),
        valid_loss=run.valid_loss(),
        guess=log(run.vocabulary),
        flushed=total(run.counts.values(), phase="backward").flushed_share
        if run.counts
        else unseen,
        lost_updates=total(run.counts.values()).swamped_share if run.counts else unseen,
        skipped=sum(record.skipped for record in run.records),
        scales=(scales[0], scales[-1]),
        chance_gradients=policy.gradients.by_chance,
        chance_weights=stored.by_chance,
        trouble=run.trouble,
        died_at=run.died_at,
    )
