"""The one immutable context that every op reads: policy, observers, role, scope, random key.

It is set by ``with ps.using(...)`` and restored when the block ends, however it ends.  There are no
global switches besides it; threads and async tasks each have their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from precsim.engine.policy import PHASES, Policy
from precsim.engine.pool import Pool

Observer = Callable[[Any], None]
"""Called with an `Event` after every rounded op; must not write to the arrays it is shown."""


@dataclass(frozen=True)
class Context:
    """What surrounds an op.

    `role` is the role of the tensors being made (a field of `Policy`), `scope` the dotted path of
    the module ("blocks.0.attn.qkv"), `seed` and `step` the key of all randomness together with the
    op's path and `calls`, which counts how often each path has run within the step.  `backend`
    ("numpy" or "cupy") is where numbers and NumPy arrays become tensors, `pool` the memory that
    large arrays are made in.
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
    pool: Pool = field(default_factory=Pool, compare=False, repr=False)

    @property
    def phase(self) -> str:
        """Phase of the training step: forward, backward or update."""
        return PHASES[self.role]


_CONTEXT: ContextVar[Context | None] = ContextVar("precsim_context", default=None)


def current() -> Context:
    """Return the context in force; outside any `using`, fp32 everywhere and nobody watching."""
    context = _CONTEXT.get()
    if context is None:
        context = Context()
        _CONTEXT.set(context)
    return context


@contextmanager
def using(policy: Policy | str | None = None, **changes: Any) -> Iterator[Context]:
    """Run a block under another context; what is not named stays as it is.

    `policy` may be a `Policy`, its string, or a format name; `changes` are fields of `Context`
    (observers, seed, step, ...).  A new `step` starts the call counts afresh.
    Raises `TypeError` for an unknown field.
    """
    if policy is not None:
        changes["policy"] = Policy.parse(policy)
    if "observers" in changes:
        changes["observers"] = tuple(changes["observers"])
    if "step" in changes or "seed" in changes:
        changes.setdefault("calls", Counter())
    context = replace(current(), **changes)
    token = _CONTEXT.set(context)
    try:
        yield context
    finally:
        _CONTEXT.reset(token)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Name the module that the ops in the block belong to; scopes nest with dots."""
    outer = current().scope
    with using(scope=f"{outer}.{name}" if outer else name):
        yield
