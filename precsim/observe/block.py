"""Watching a block of code: its ops, the worst of them, and a place to stop.

``with Observation("shadow", op="gradients/*") as seen: ...`` watches whatever runs in the block, a
training run included.  ``ps.observe`` is this class with tables to look at
(`precsim.show.observed`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from types import TracebackType
from typing import Any, Self

from precsim.engine.context import current, using
from precsim.engine.dispatch import Event
from precsim.formats.registry import AnyFormat
from precsim.formats.registry import format as resolve
from precsim.observe.counters import OpCounts, total
from precsim.observe.guard import Breakpoint
from precsim.observe.trace import Level, Tracer, check_words, matches


@dataclass
class Seen(OpCounts):
    """One op that was seen: its counts, and its local error.

    `err_rel`: error of the results against the same op in float64, as a share of their norm; NaN
    where the level did not ask for it.  `source`: file and line of the code that called the op.
    """

    err_rel: float = float("nan")
    source: str = ""

    @property
    def err_u(self) -> float:
        """The local error in units of the format's u."""
        return self.err_rel / self.u if self.u else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON; see `OpCounts.to_dict`."""
        return super().to_dict() | {"err_u": self.err_u}


@dataclass(frozen=True)
class Stop:
    """Where a block was stopped: the op, and the event with its inputs and results as arrays."""

    op: Seen
    event: Event

    def __repr__(self) -> str:
        return f"Stop({self.op.path}, step {self.op.step}; see .op and .event)"


class Observation:
    """Watches the ops of a block, at a level of `precsim.observe.trace`.

    `op` is a glob for path, scope or op ("gradients/*", "blocks.0.*", "matmul"); `phase` (forward,
    backward, update), `role` and `format` compare whole words; `keep` is asked about each event that
    is left.  `last` is how many ops are kept, the newest; `missed` counts those that had to go.

    `stop` is asked about each op that was seen (`Seen`): where it says yes the block ends there,
    without an error, and `stopped` says where.  A recorded run that is stopped so can be resumed.

    Changes no bit of what it watches.  Raises `ValueError` for an unknown level, phase, role or
    format.
    """

    def __init__(
        self,
        level: str | Level = "hist",
        *,
        op: str | None = None,
        phase: str | None = None,
        role: str | None = None,
        format: str | AnyFormat | None = None,
        keep: Callable[[Event], bool] | None = None,
        stop: Callable[[Seen], bool] | None = None,
        last: int = 10_000,
    ) -> None:
        self.level = Level.parse(level)
        if last < 1:
            msg = f"last must be at least 1, the number of ops to keep; got {last}"
            raise ValueError(msg)
        check_words(phase, role)
        self._wanted = {"phase": phase, "role": role}
        self._op, self._keep, self._stop = op, keep, stop
        self._format = None if format is None else resolve(format)
        self._tracer = Tracer(self.level, hashes=False)
        picks = any((op, phase, role, format, keep, stop))  # or all would be counted for a few
        self.needs = "exact" if picks else self._tracer.needs
        self._seen: deque[Seen] = deque(maxlen=last)
        self._blocks: list[using] = []
        self.count = 0
        self.stopped: Stop | None = None
        self.tensors: dict[tuple[int, str, int], Any] = {}

    def __enter__(self) -> Self:
        block = using(observers=(*current().observers, self))
        block.__enter__()
        self._blocks.append(block)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._blocks.pop().__exit__(kind, error, trace)
        return isinstance(error, Breakpoint) and error.args[0] is self

    def __call__(self, event: Event) -> None:
        """See one op; raise `Breakpoint` where `stop` says so."""
        if not self._wants(event):
            return
        self._tracer(event)
        trace = self._tracer.drain()
        row = Seen(**vars(trace.rows[0]), err_rel=trace.errors[0], source=trace.sources[event.path])
        self._seen.append(row)
        self.count += 1
        if trace.tensors:
            self.tensors[event.step, event.path, event.call] = trace.tensors[0]
        if self._stop is not None and self._stop(row):
            self.stopped = Stop(row, event)
            raise Breakpoint(self)

    def _wants(self, event: Event) -> bool:
        return (
            self.level.includes("counts")
            and all(w is None or getattr(event, name) == w for name, w in self._wanted.items())
            and (self._format is None or event.format == self._format)
            and (self._op is None or matches(event.path, self._op))
            and (self._keep is None or self._keep(event))
        )

    @property
    def missed(self) -> int:
        """How many ops were seen and are no longer kept."""
        return self.count - len(self._seen)

    @property
    def ops(self) -> list[Seen]:
        """The ops in the order in which they ran."""
        return list(self._seen)

    def worst(self, k: int = 5, by: str = "flushed_share") -> list[Seen]:
        """Return the k ops where `by` is largest: any number of `Seen`, its shares included.

        NaN counts as less than any number.  Raises `ValueError` for what is no number of an op.
        """
        if type(getattr(Seen(), by, None)) not in (int, float):
            msg = f"no number {by!r} to look for: try flushed_share, overflowed, err_u, amax, n"
            raise ValueError(msg)

        def badness(row: Seen) -> float:
            value = float(getattr(row, by))
            return float("-inf") if isnan(value) else value

        return sorted(self._seen, key=badness, reverse=True)[: max(0, k)]

    def total(self, **wanted: str) -> OpCounts:
        """Return the sum over the ops whose fields equal `wanted`, e.g. ``phase="backward"``."""
        return total(self._seen, **wanted)
