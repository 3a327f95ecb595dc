"""A moment of training: weights, a batch and a loss scale, frozen, to be run under any policy.

Everything that this package finds out, it finds out by asking a moment for its gradient in other
formats.  Nothing is trained, so every answer is about *this* step: same weights, same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from precsim.engine import ops
from precsim.engine.context import Observer, using
from precsim.engine.delayed import AmaxHistory, Delays
from precsim.engine.dispatch import Event
from precsim.engine.policy import Policy
from precsim.engine.precision import FOLLOWING, Precision
from precsim.engine.rule import PHASES, Rule
from precsim.formats.registry import element_of, format
from precsim.nn.gpt import GPT, GPTConfig
from precsim.runs.config import TrainConfig
from precsim.runs.data import Batches

Values = dict[str, npt.NDArray[np.float64]]

REFERENCE = Policy.uniform("fp64")
"""Every op in float64, rounded by nobody: what the gradient should have been."""


@dataclass(frozen=True)
class Moment:
    """One step's question: the gradient of `model` at `parameters` on tokens (x, y).

    `weight` divides the loss as micro-batches do, `scale` multiplies it as loss scaling does; both
    are taken out of the gradients again, in float64, so that only the rounding differs.  `delays` are
    the histories of delayed scaling.
    """

    model: GPTConfig
    parameters: Values
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    policy: Policy
    scale: float = 1.0
    weight: float = 1.0
    seed: int = 0
    step: int = 0
    delays: Mapping[str, AmaxHistory] = field(default_factory=dict)

    def gradients(
        self, policy: Policy | str | None = None, observers: Iterable[Observer] = ()
    ) -> Values:
        """Return the unscaled gradients in float64, by parameter, under `policy` (None: its own).

        Infinities and NaN stay; nothing is skipped.
        """
        return self.gradients_with(Delays(self.delays), policy, observers)

    def gradients_with(
        self,
        delays: Delays,
        policy: Policy | str | None = None,
        observers: Iterable[Observer] = (),
    ) -> Values:
        """Return them with the factors of `delays`, which keeps what the step sees."""
        chosen = self.policy if policy is None else Policy.parse(policy)
        chosen = replace(chosen, initial_weights=None)  # these weights began long ago
        with using(
            chosen, observers=tuple(observers), seed=self.seed, step=self.step, delays=delays
        ):
            with using(observers=()):
                model = GPT(self.model, parameters=self.parameters)
            loss = model.loss(self.x, self.y)
            factor = self.weight * self.scale
            if factor != 1:
                with using(role="loss", scope="loss.scale"):
                    loss = ops.mul(loss, factor)
            loss.backward()
        grads = {n: p.grad.numpy() for n, p in model.parameters.items() if p.grad is not None}
        return {n: np.asarray(g, np.float64) / factor for n, g in grads.items()}

    def reference(self) -> Values:
        """Return the float64 gradients."""
        return self.gradients(REFERENCE)

    def at(self, **changes: object) -> Moment:
        """Return the moment with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def sites(self) -> list[Site]:
        """Return every place where the step rounds: the weights, then ops as they first run.

        Casts are part of the op that asked for them.
        """
        found: dict[str, Site] = {WEIGHTS.name: WEIGHTS}

        def note(event: Event) -> None:
            if event.kind == "cast":
                return
            site = Site(event.role, event.scope, event.op, event.kind, event.format.name)
            known = found.setdefault(site.name, site)
            found[site.name] = replace(known, values=known.values + event.exact.size)

        self.gradients(observers=[note])
        return list(found.values())


def moment_before(
    step: int,
    config: TrainConfig,
    model: GPT,
    batches: Batches,
    policy: Policy,
    scale: float,
    delays: Mapping[str, AmaxHistory] | None = None,
) -> Moment:
    """Return the moment before a step of a training: the model's weights, the first micro-batch.

    In arithmetic "exact", whatever the policy's own is, so that it can be compared with float64.
    """
    x, y = batches.train(step * config.accumulation)
    return Moment(
        model=model.config,
        parameters={n: np.asarray(w.numpy(), np.float64) for n, w in model.parameters.items()},
        x=x,
        y=y,
        policy=replace(policy, arithmetic="exact"),
        scale=scale,
        weight=1 / (config.accumulation * config.micro_batches),
        seed=config.seed,
        step=step,
        delays=delays or {},
    )


@dataclass(frozen=True)
class Site:
    """A place where values are rounded: an op in a role and a scope.

    A matmul is three sites: forward (activations), input gradient (gradients) and weight gradient.
    """

    role: str
    scope: str
    op: str
    kind: str = field(default="", compare=False)
    format: str = field(default="", compare=False)
    values: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """The path by which events name it: role/scope/op."""
        return f"{self.role}/{self.scope}/{self.op}"

    @property
    def title(self) -> str:
        """The name, as tables and figures have it: the cast of the weights is one for all of them."""
        return f"{self.name} (all)" if self == WEIGHTS else self.name

    @property
    def phase(self) -> str:
        """Forward, backward or update."""
        return PHASES[self.role]

    def rule(self, output: str) -> Rule:
        """Return the rule that puts this site, and no other, into a format."""
        return Rule(op=self.op, role=self.role, scope=self.scope, output=output)  # type: ignore[arg-type]


WEIGHTS = Site("weights", "", "cast")
"""The rounding of all weights into the format in which the forward pass reads them."""


def promote(policy: Policy, sites: Iterable[Site], to: str = "fp64") -> Policy:
    """Return `policy` with the given sites, and only those, in a wide format.

    A master copy stays as it is: its rounding is another site.
    """
    chosen = list(sites)
    if WEIGHTS in chosen:
        others = tuple(rule for rule in policy.rules if rule.role != "weights")
        policy = replace(policy, weights=Precision.parse(to), initial_weights=None, rules=others)
    rules = tuple(site.rule(to) for site in chosen if site != WEIGHTS)
    if policy.has_master:  # on its way to the master copy a gradient is cast, and stays high there
        scopes = dict.fromkeys(site.scope for site in chosen if site.role == "weight_gradients")
        rules += tuple(Site("weight_gradients", scope, "cast").rule(to) for scope in scopes)
    return replace(policy, rules=rules + policy.rules, arithmetic="exact")


def only(policy: Policy, sites: Iterable[Site]) -> Policy:
    """Return fp64 everywhere but at the given sites, which round as `policy` has them round.

    There is a master copy where `policy` has one, for its updates are sites.
    """
    chosen = list(sites)
    high = replace(REFERENCE, granularity=policy.granularity)
    if policy.has_master:
        high = replace(high, master_weights=high.weights)
    kept: tuple[Rule, ...] = ()
    if WEIGHTS in chosen:
        high = replace(high, weights=policy.weights)
        kept = tuple(rule for rule in policy.rules if rule.role == "weights")
    rules = tuple(_low_rule(policy, site) for site in chosen if site != WEIGHTS)
    return replace(high, rules=(*rules, *kept))


def _low_rule(policy: Policy, site: Site) -> Rule:
    """Return the policy's own treatment of a site, operand casts and accumulator included."""
    own = next(
        (r for r in policy.rules if r.matches(site.op, site.kind, site.role, site.scope)), Rule()
    )
    precision = own.output or getattr(policy, site.role)
    return replace(
        own,
        op=site.op,
        role=site.role,
        scope=site.scope,
        output=replace(precision, format=site.format),
        accumulator=own.accumulator or policy.accumulator,
    )


def relative_error(measured: Values, truth: Values) -> float:
    """Return ||measured - truth|| / ||truth|| over all parameters; inf if any is not finite."""
    names = [n for n in truth if n in measured]
    difference = sum(float(np.square(measured[n] - truth[n]).sum()) for n in names)
    size = sum(float(np.square(truth[n]).sum()) for n in names)
    if not np.isfinite(difference):
        return float("inf")
    return float(np.sqrt(difference / size)) if size else 0.0


def unit(policy: Policy) -> float:
    """Return the unit roundoff in which a policy's errors are told: its coarsest named format's."""
    return max(_units(policy).values(), default=2.0**-24)


def typical_error(policy: Policy) -> float:
    """Return the relative error that one rounding explains in a policy's coarsest named format.

    It is u, and of integers, whose u is that of their largest value, u two binades below that.
    """
    integers = (name for name in _units(policy) if element_of(format(name)).is_integer)
    return max(unit(policy), *(4 * element_of(format(name)).u for name in integers), 0.0)


def finest_unit(policy: Policy) -> float:
    """Return the unit roundoff of the finest format in which a policy computes."""
    return min(_units(policy).values(), default=2.0**-24)


def coarsest(policy: Policy) -> str:
    """Return the name of the coarsest format that a policy names for what it computes."""
    units = _units(policy)
    return max(units, key=units.__getitem__, default="fp32")


def _units(policy: Policy) -> dict[str, float]:
    precisions = [policy.activations, policy.gradients]
    if any(p.format in FOLLOWING for p in precisions):  # the first that they follow are the weights
        precisions.append(policy.weights)
    precisions += [p for rule in policy.rules for p in rule.precisions]
    names = dict.fromkeys(p.format for p in precisions if p.format not in FOLLOWING)
    return {name: element_of(format(name)).u for name in names}
