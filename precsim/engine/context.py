"""The one immutable context that every op reads: policy, observers, role, scope, random key.

It is set by ``with ps.using(...)`` and restored when the block ends, however it ends.  There are no
global switches besides it; threads and async tasks each have their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

from precsim.engine.delayed import Delays
from precsim.engine.policy import Policy
from precsim.engine.pool import Pool
from precsim.engine.rule import PHASES

if TYPE_CHECKING:
    from precsim.engine.dispatch import Event

Observer = Callable[["Event"], None]
"""Called with an `Event` after every rounded op; must not write to the arrays it is shown.

One that has an attribute `needs`, "counts" or "hist", does without results before rounding
(`Event.exact`), which then need no memory of their own: it gets a `Tally` of what rounding did to
them (`Event.tally`), with a histogram of exponents if it asks for one.
"""

NEEDS = ("exact", "counts", "hist")
"""What an observer may need; one that does not say needs "exact"."""


@dataclass(frozen=True)
class Context:
    """What surrounds an op.

    `role` is the role of the tensors being made (a field of `Policy`), `scope` the dotted path of
    the module ("blocks.0.attn.qkv"), `seed` and `step` the key of all randomness together with the
    op's path and `calls`, which counts how often each path has run within the step.  `backend`
    ("numpy" or "cupy") is where numbers and NumPy arrays become tensors, `pool` the memory that
    large arrays are made in, `delays` the factors of delayed scaling.
    """

    policy: Policy = field(default_factory=Policy)
    observers: tuple[Observer, ...] = ()
    role: str = "activations"
    scope: str = ""
    seed: int = 0
    step: int = 0
    backend: str = "numpy"
    taping: bool = True
    calls: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    delays: Delays = field(default_factory=Delays, compare=False, repr=False)
    pool: Pool = field(default_factory=Pool, compare=False, repr=False)

    @property
    def phase(self) -> str:
        """Phase of the training step: forward, backward or update."""
        return PHASES[self.role]


_CONTEXT: ContextVar[Context | None] = ContextVar("precsim_context", default=None)


_FIELDS = frozenset(f.name for f in fields(Context)) - {"policy"}


def current() -> Context:
    """Return the context in force; outside any `using`, fp32 everywhere and nobody watching."""
    context = _CONTEXT.get()
    if context is None:
        context = Context()
        _CONTEXT.set(context)
    return context


class using:
    """Run a block under another context; what is not named stays as it is.

    `policy` may be a `Policy`, its string, or a format name; `changes` are fields of `Context`
    (observers, seed, step, ...).  A new `step` starts the call counts afresh.
    Raises `TypeError` for an unknown field, a seed that is not whole and observers that are no list
    of callables,
    `ValueError` for an unknown role and for an observer that needs what there is not.
    """

    __slots__ = ("_changes", "_token")

    def __init__(self, policy: Policy | str | None = None, **changes: Any) -> None:
        if not _FIELDS.issuperset(changes):
            unknown = ", ".join(sorted(changes.keys() - _FIELDS))
            msg = f"using(): unknown {unknown}; expected policy, {', '.join(sorted(_FIELDS))}"
            raise TypeError(msg)
        if policy is not None:
            changes["policy"] = Policy.parse(policy)
        if "role" in changes and changes["role"] not in PHASES:
            msg = f"using(): unknown role {changes['role']!r}; expected one of {', '.join(PHASES)}"
            raise ValueError(msg)
        if not isinstance(changes.get("seed", 0), Integral):
            msg = f"using(): expected a seed that is a whole number; got {changes['seed']!r}"
            raise TypeError(msg)
        if "observers" in changes:
            changes["observers"] = _checked(changes["observers"])
        if "step" in changes or "seed" in changes:
            changes.setdefault("calls", Counter())
        self._changes = changes

    def __enter__(self) -> Context:
        context = _changed(current(), self._changes)
        self._token = _CONTEXT.set(context)
        return context

    def __exit__(self, *error: object) -> None:
        _CONTEXT.reset(self._token)


def _changed(context: Context, changes: dict[str, Any]) -> Context:
    """Do what `dataclasses.replace` does, in a tenth of the time."""
    changed = object.__new__(Context)
    object.__setattr__(changed, "__dict__", vars(context) | changes)
    return changed


class walking:
    """Run a block that goes to a role and scope, and to others, hundreds of times.

    Each is made a context once, with what else was in force when the block began (`changes` apart),
    which is in force again when it ends.
    """

    __slots__ = ("_outer", "_there", "_token")

    def __init__(self, **changes: Any) -> None:
        self._outer = _changed(current(), changes)
        self._there: dict[tuple[str, str], Context] = {}

    def __enter__(self) -> Self:
        self._token = _CONTEXT.set(self._outer)
        return self

    def to(self, role: str, scope: str) -> None:
        """Go there, until the next call or the end of the block."""
        context = self._there.get((role, scope))
        if context is None:
            context = _changed(self._outer, {"role": role, "scope": scope})
            self._there[role, scope] = context
        _CONTEXT.set(context)

    def __exit__(self, *error: object) -> None:
        _CONTEXT.reset(self._token)


def _checked(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    if not isinstance(observers, Iterable):
        msg = f"using(): expected a list of observers, [observer]; got {observers!r:.60}"
        raise TypeError(msg)
    checked = tuple(observers)
    for observer in checked:
        needs = getattr(observer, "needs", "exact")
        if needs not in NEEDS:
            msg = f"observer {observer!r:.60} needs {needs!r}: expected {', '.join(NEEDS)}"
            raise ValueError(msg)
    return checked


def scope(name: str) -> using:
    """Name the module that the ops in the block belong to; scopes nest with dots."""
    outer = current().scope
    return using(scope=f"{outer}.{name}" if outer else name)
