"""Watching whole steps: how closely (`Level`), and the observer that does it (`Tracer`).

    off       nothing
    counts    what rounding did to each op's results, and a hash of them
    hist      the same, and a histogram of their exponents
    shadow    the same, and each op's error against itself in float64
    tensors   the same, and the results themselves, of the ops that a pattern names

No level changes a bit of what it watches: a tracer reads arrays and writes none.  What each costs
is measured (`precsim.observe.costs`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from hashlib import blake2b
from math import nan
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.backend import to_numpy
from precsim.engine.dispatch import Event
from precsim.engine.rule import PHASES
from precsim.formats.format import Format
from precsim.formats.registry import AnyFormat
from precsim.observe.counters import OpCounts, Pending, note, read
from precsim.observe.shadow import FLOAT64, local_error

LEVELS = ("off", "counts", "hist", "shadow", "tensors")
"""From the cheapest on; each does what those before it do."""


@dataclass(frozen=True)
class Level:
    """How closely to watch; written "hist", or "tensors:PATTERN" (see `matches`).

    Raises `ValueError` for another word.
    """

    name: str = "hist"
    pattern: str = "*"

    def __post_init__(self) -> None:
        if self.name not in LEVELS or (self.pattern != "*" and self.name != "tensors"):
            msg = f"observe={self}: expected {', '.join(LEVELS)}, or tensors:PATTERN"
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str | Level) -> Level:
        """Read what `str` wrote."""
        if isinstance(text, Level):
            return text
        name, _, pattern = text.partition(":")
        return cls(name.strip(), pattern.strip() or "*")

    def includes(self, name: str) -> bool:
        """Return whether this level does what the one called `name` does."""
        return LEVELS.index(self.name) >= LEVELS.index(name)

    def __str__(self) -> str:
        return self.name if self.pattern == "*" else f"{self.name}:{self.pattern}"


def matches(path: str, pattern: str) -> bool:
    """Return whether a glob names an op's path (role/scope/op), its scope, or its op.

    "gradients/*" is all that makes gradients, "blocks.0.*" all in block 0, "matmul" every matmul.
    """
    _, _, rest = path.partition("/")
    scope, _, op = rest.rpartition("/")
    return any(fnmatchcase(part, pattern) for part in (path, scope, op))


def check_words(phase: str | None, role: str | None) -> None:
    """Raise `ValueError` for a phase or a role that there is not."""
    for what, word, known in (("phase", phase, PHASES.values()), ("role", role, PHASES)):
        if word is not None and word not in known:
            msg = f"unknown {what} {word!r}: expected one of {', '.join(dict.fromkeys(known))}"
            raise ValueError(msg)


def unmatched(pattern: str, paths: Collection[str]) -> str:
    """Return what to try where a glob names none of some ops: the end of a message."""
    parts: dict[str, None] = {}
    for path in paths:
        _, _, rest = path.partition("/")
        scope, _, op = rest.rpartition("/")
        parts |= dict.fromkeys((op, scope, path))
    if any(pattern in part for part in parts):
        return f"a name has to match as a whole: did you mean '*{pattern}*'?"
    near = get_close_matches(pattern, parts, n=2)
    ops = sorted({path.rpartition("/")[2] for path in paths})
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(ops)}"


@dataclass
class StepTrace:
    """What was seen of one step: a row for each op that rounded, in the order in which they ran.

    `hashes`, `errors`: of each row (0 and NaN where it was not asked for).  `tensors`: results by
    the number of the row.  `sources`: file and line of the code that called the op, by path.
    """

    rows: list[OpCounts] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    tensors: dict[int, npt.NDArray[Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


class Tracer:
    """An observer that sees what its level says; `drain` hands over what it saw, once a step.

    `hashes=False` leaves the hashes out, which only a recorded run needs.  They are computed in a
    thread beside the run: hashing takes half as long as the step itself, needs no lock, and results
    are never written again.  A shadow that fails (it needs memory of its own) is left out from then
    on, with one warning; the run goes on.
    """

    def __init__(self, level: Level, *, hashes: bool = True) -> None:
        self.level = level
        self._histogram = level.includes("hist")
        self.needs = "hist" if self._histogram else "counts"
        self._hasher = ThreadPoolExecutor(1, "precsim-hashes") if hashes else None
        self._hashes: list[Future[int]] = []
        self._measure: Callable[[Event], float] | None = (
            local_error if level.includes("shadow") else None
        )
        self._trace = StepTrace()
        self._rows: list[OpCounts | Pending] = []
        self._errors: list[float | None] = []  # None: the row tells
        self._sources: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Note one op."""
        number = len(self._rows)
        self._rows.append(note(event, histogram=self._histogram))
        if self._hasher:
            rounded = to_numpy(event.rounded)
            self._hashes.append(self._hasher.submit(digest, rounded, event.format))
        self._errors.append(self._error(event))
        if event.path not in self._sources:
            self._sources[event.path] = calling_line(sys._getframe(1))
        if self.level.name == "tensors" and matches(event.path, self.level.pattern):
            self._trace.tensors[number] = to_numpy(event.rounded)

    def drain(self) -> StepTrace:
        """Return what was seen, and start afresh."""
        trace, self._trace = self._trace, StepTrace()
        trace.rows = read(self._rows)
        trace.sources = {row.path: self._sources[row.path] for row in trace.rows}
        trace.errors = [
            row.relative_error if error is None else error
            for row, error in zip(trace.rows, self._errors, strict=True)
        ]
        self._rows, self._errors = [], []
        trace.hashes = [future.result() for future in self._hashes] or [0] * len(trace.rows)
        self._hashes = []
        return trace

    def _error(self, event: Event) -> float | None:
        if event.accumulator is None and event.rounded.dtype == FLOAT64:
            return None  # the op is its own shadow
        if self._measure is None:
            return nan
        try:
            return self._measure(event)
        except Exception as error:  # noqa: BLE001  (whatever fails, it is not the run)
            self._measure = None
            msg = f"no shadow from {event.path} at step {event.step} on: {error!r}"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
            return nan


def digest(values: Any, fmt: AnyFormat) -> int:
    """Return BLAKE2b-64 of an op's results as a number.

    Of their bytes as little-endian float32 where every value of the format is one (the same in
    both arithmetics, then), as float64 where not; the shape is not part of it.
    """
    array = np.ascontiguousarray(to_numpy(values))
    array = array.astype("<f4" if _fits_float32(fmt) else "<f8", copy=False)
    data = array.reshape(-1).view(np.uint8).data
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _fits_float32(fmt: AnyFormat) -> bool:
    return (
        isinstance(fmt, Format)
        and fmt.precision <= 24
        and fmt.max < 2.0**128
        and fmt.smallest_subnormal >= 2.0**-149
    )


_PACKAGE = Path(__file__).resolve().parents[2]
_FUNNEL = tuple(
    str(_PACKAGE / "precsim" / f"{name}.py")
    for name in ("engine/dispatch", "engine/tape", "engine/tensor", "engine/context",
                 "observe/block", "observe/guard")
)  # fmt: skip


def calling_line(frame: FrameType | None) -> str:
    """Return "file:line" of the first caller that is not part of the funnel, or of an observer.

    Forward that is a line of the model, backward the rule that says how the gradient is made.
    """
    while frame is not None and frame.f_code.co_filename in _FUNNEL:
        frame = frame.f_back
    return f"{shorten(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else ""


def shorten(file: str) -> str:
    """Return a source file's name: from the package on if it is in it, else the bare name."""
    path = Path(file)
    return path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
