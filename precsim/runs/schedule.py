"""Precision schedules: another policy while a run goes on, decided at each of its evaluations.

A schedule is a frozen value with one hook, `on_eval`: it is shown what the run has come to and what
each op of the step just done did, and returns the policy to go on with, or None.  It remembers
nothing itself, so a run that is resumed or replayed decides as it did before.  `parse` reads the
text that a configuration holds; `SCHEDULES` may be given a class of one's own.

    none
    steps 100: bf16; 300: weights=fp32 activations=bf16
    loss improvement=0.05 levels=fp16/fp32
    signal flushed=0.3 lost=0.5 to=fp32
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from math import isfinite
from typing import Any, Protocol

from precsim.engine.policy import Policy
from precsim.engine.precision import FOLLOWING, Precision
from precsim.engine.rule import PHASES, Rule
from precsim.formats.format import Format
from precsim.formats.modes import stochastic
from precsim.formats.registry import element_of, format
from precsim.observe.counters import OpCounts, total
from precsim.observe.whatif import what_if

Statistics = Sequence[OpCounts]
"""A row for each op of the step after which the run is evaluated, with histograms."""


@dataclass(frozen=True)
class Metrics:
    """What a run has come to after `step`.

    `valid_losses` are those of all its evaluations, the newest last; `policy` is in force, and
    `initial` the one that it began with; `skipped`: the loss scaler skipped the step.
    """

    step: int
    valid_losses: tuple[float, ...]
    policy: Policy
    initial: Policy
    skipped: bool = False


class Schedule(Protocol):
    """What `SCHEDULES` holds the classes of: frozen dataclasses whose `str` can be parsed back."""

    def on_eval(self, metrics: Metrics, statistics: Statistics) -> Policy | None:
        """Return the policy of the next step on, or None to leave it as it is."""


@dataclass(frozen=True)
class AtSteps:
    """Change at fixed steps, whatever happens: `changes` are (first step, policy), ascending."""

    changes: tuple[tuple[int, Policy], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.changes]
        if not steps or steps[0] < 1 or any(a >= b for a, b in pairwise(steps)):
            msg = f"steps of a precision schedule must ascend from 1 or more; got {steps}"
            raise ValueError(msg)

    def on_eval(self, metrics: Metrics, statistics: Statistics) -> Policy | None:
        """Return the policy of the next step, if it has one."""
        return dict(self.changes).get(metrics.step + 1)

    def check(self, eval_every: int) -> None:
        """Raise `ValueError` for a step before which the run is not evaluated."""
        for step, _ in self.changes:
            if step % eval_every:
                near = sorted(
                    {max(1, step // eval_every) * eval_every, -(-step // eval_every) * eval_every}
                )
                msg = (
                    f"precision schedule: step {step} does not follow an evaluation; with "
                    f"eval_every={eval_every} try {' or '.join(map(str, near))}"
                )
                raise ValueError(msg)

    def __str__(self) -> str:
        return "steps " + "; ".join(f"{step}: {policy}" for step, policy in self.changes)

    @classmethod
    def parse(cls, text: str) -> AtSteps:
        """Read "100: bf16; 300: weights=fp32 activations=bf16"."""
        changes = []
        for part in text.split(";"):
            step, colon, policy = part.partition(":")
            if not colon or not step.strip().isdigit():
                msg = f"expected STEP: POLICY; STEP: POLICY ..., got {part.strip()!r}"
                raise ValueError(msg)
            changes.append((int(step), Policy.parse(policy.strip())))
        return cls(tuple(changes))


@dataclass(frozen=True)
class ByLoss:
    """Look at the loss, as one would by hand: go up a level where it no longer improves.

    `improvement`: the share by which the validation loss must have fallen since the evaluation
    before; a loss that is no number has not.  `lower_above`: the share above which the run goes
    down a level again (inf: never).  `levels`: formats, from low to high; at a level everything
    that is narrower is in it, and level 0 is the initial policy.

    What rounding takes from a run is seldom to be seen like this: a loss that falls at a tenth of
    the speed still falls.  `BySignal` looks at the rounding itself.
    """

    improvement: float = 0.05
    lower_above: float = 0.25
    levels: tuple[str, ...] = ("fp32",)

    def __post_init__(self) -> None:
        if not self.improvement <= self.lower_above:
            msg = (
                "expected improvement <= lower_above, or a run would go up and down; got "
                f"{self.improvement} and {self.lower_above}"
            )
            raise ValueError(msg)

    def on_eval(self, metrics: Metrics, statistics: Statistics) -> Policy | None:
        """Return the policy one level up or down; None at the first evaluation and at the ends."""
        if len(metrics.valid_losses) < 2:
            return None
        before, now = metrics.valid_losses[-2:]
        gained = (before - now) / before if isfinite(now) and before else 0.0
        raised = [at_least(metrics.initial, name) for name in self.levels]
        ladder = list(dict.fromkeys([metrics.initial, *raised]))
        level = ladder.index(metrics.policy) if metrics.policy in ladder else 0
        step = 1 if gained < self.improvement else -1 if gained > self.lower_above else 0
        wanted = min(max(level + step, 0), len(ladder) - 1)
        return None if wanted == level else ladder[wanted]

    def __str__(self) -> str:
        return _spell("loss", self)


@dataclass(frozen=True)
class BySignal:
    """Look at the rounding: raise the ops that flush or overflow, and lower them when quiet.

    An op of a role and scope goes into `to` where more than the share `flushed` of its nonzero
    results became zero, or more than `overflowed` of all overflowed (in a step that the loss scaler
    skipped, backward overflow is its business).  It goes back to the initial policy's format where
    that would flush and overflow less than `quiet` times these shares of what it makes now.  Where
    more than the share `lost` of the weight updates changed nothing, the weights get a master copy
    in `to`, and keep it: with a master nothing tells what would be lost without.
    Weights that round by chance lose nothing on average, and are left alone.
    """

    flushed: float = 0.3
    overflowed: float = 0.0
    lost: float = 0.5
    quiet: float = 0.5
    to: str = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "to", format(self.to).name)

    def on_eval(self, metrics: Metrics, statistics: Statistics) -> Policy | None:
        """Return the initial policy with rules for the ops in trouble, if these changed."""
        initial, policy = metrics.initial, metrics.policy
        raised = policy.rules[: len(policy.rules) - len(initial.rules)]
        kept = [rule for rule in raised if not self._is_quiet(rule, statistics, initial)]
        added = [
            rule
            for site in _sites(statistics)
            if self._in_trouble(site, metrics) and (rule := self._rule(site)) not in raised
        ]
        master = policy.master_weights
        if self._loses_updates(policy, statistics):
            master = Precision(self.to)
        rules = (*dict.fromkeys(added), *kept, *initial.rules)
        new = replace(initial, rules=rules, master_weights=master)
        return None if new == policy else new

    def _in_trouble(self, site: OpCounts, metrics: Metrics) -> bool:
        if site.role in ("weights", "master_weights") or not _narrower(site.format, self.to):
            return False
        overflow = site.overflowed / site.n if site.n else 0.0
        if metrics.skipped and site.phase == "backward":
            overflow = 0.0
        return site.flushed_share > self.flushed or overflow > self.overflowed

    def _rule(self, site: OpCounts) -> Rule:
        """Return the rule that raises a site; a cast is raised with the op that asked for it."""
        to = Precision(self.to)
        if site.op == "cast":
            return Rule(role=site.role, scope=site.scope, inputs=to, output=to)
        return Rule(op=site.op, role=site.role, scope=site.scope, output=to)

    def _is_quiet(self, rule: Rule, statistics: Statistics, initial: Policy) -> bool:
        """Return whether the initial policy would do little harm to what a raised op makes now."""
        rows = [row for row in statistics if rule.matches(row.op, "", row.role, row.scope)]
        if not rows:
            return False
        counts = total(rows)
        name = rows[0].precision(initial).format
        fmt = None if name in FOLLOWING else format(name)
        if not isinstance(fmt, Format) or counts.histogram is None:
            return False
        loss = what_if(counts, fmt)
        return (
            loss.flushed <= self.quiet * self.flushed
            and loss.overflowed <= self.quiet * self.overflowed
        )

    def _loses_updates(self, policy: Policy, statistics: Statistics) -> bool:
        stored = policy.master_weights if policy.has_master else policy.weights
        if stochastic(stored.rounding) or not _narrower(stored.format, self.to):
            return False
        return total(statistics, op="apply_update").swamped_share > self.lost

    def __str__(self) -> str:
        return _spell("signal", self)


SCHEDULES: dict[str, Any] = {"steps": AtSteps, "loss": ByLoss, "signal": BySignal}
"""Name -> class.  Its `parse` reads what follows the name; else its fields, as field=value."""


def parse(text: str) -> Schedule | None:
    """Return the schedule that a text names, None for "none".

    Raises `ValueError` for an unknown name or field, or a value that cannot be.
    """
    name, _, rest = text.strip().partition(" ")
    if name == "none" and not rest:
        return None
    kind = SCHEDULES.get(name)
    try:
        if kind is None:
            msg = f"expected one of none, {', '.join(SCHEDULES)}"
            raise ValueError(msg)
        schedule: Schedule = kind.parse(rest) if hasattr(kind, "parse") else _read(kind, rest)
    except ValueError as error:
        msg = f"precision schedule {text!r}: {error}"
        raise ValueError(msg) from None
    return schedule


def _read(kind: Any, text: str) -> Schedule:
    types = {f.name: getattr(f.type, "__name__", str(f.type)) for f in fields(kind)}
    read: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    given: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or name not in types:
            msg = f"unknown entry {word!r}: expected field=value with a field of {', '.join(types)}"
            raise ValueError(msg)
        given[name] = read.get(types[name], _words)(value)
    schedule: Schedule = kind(**given)
    return schedule


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("/"))


def _spell(name: str, schedule: Any) -> str:
    words = [name]
    for f in fields(schedule):
        value = getattr(schedule, f.name)
        if value != f.default:
            words.append(f"{f.name}={'/'.join(value) if isinstance(value, tuple) else value}")
    return " ".join(words)


def at_least(policy: Policy, floor: str) -> Policy:
    """Return a policy with everything that is narrower than the format `floor` in that format.

    What follows its operands ("widest"), or is neither narrower nor wider (bf16 beside fp16), stays.
    """

    def lifted(precision: Precision) -> Precision:
        low = _narrower(precision.format, floor)
        return Precision(format(floor).name) if low else precision

    roles: dict[str, Any] = {role: lifted(getattr(policy, role)) for role in PHASES}
    rules = tuple(rule.with_precisions(lifted) for rule in policy.rules)
    return replace(policy, rules=rules, **roles)


def difference(old: Policy, new: Policy) -> str:
    """Say what changed between two policies: "weights fp16 -> fp32, + rule ..."."""
    names = (*PHASES, "accumulator", "arithmetic", "granularity", "delayed")
    said = [
        f"{name} {getattr(old, name)} -> {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    said += [f"+ rule {rule}" for rule in new.rules if rule not in old.rules]
    said += [f"- rule {rule}" for rule in old.rules if rule not in new.rules]
    return ", ".join(said)


def _narrower(name: str, wide: str) -> bool:
    """Return whether a format's values are some, and not all, of those of `wide`."""
    if name in FOLLOWING:
        return False
    element, floor = element_of(format(name)), element_of(format(wide))
    return floor != element and floor.contains(element)


def _sites(statistics: Iterable[OpCounts]) -> list[OpCounts]:
    """Add up the rows of each op in a role and scope."""
    sites: dict[tuple[str, str, str], OpCounts] = {}
    for row in statistics:
        key = (row.role, row.scope, row.op)
        empty = OpCounts(
            op=row.op, role=row.role, scope=row.scope, phase=row.phase, format=row.format
        )
        sites.setdefault(key, empty).add(row)
    return list(sites.values())
