"""Delayed scaling: the factor of a tensor follows from what its place saw in earlier steps.

A factor from the tensor's own largest magnitude needs a pass over it before it can be quantized.
Delayed scaling takes that of the last steps instead: the first step has factor 1, every step notes
its amax, and afterwards the factor becomes max / amax over a window of them.  A tensor that grows
faster than the window tells saturates.  A gradient that vanishes in the first step, for want of a
factor, leaves nothing to learn from for the layers before it: it takes some steps until all have one.

The factors are state: `precsim.train` keeps them in checkpoints, and a run resumes with their bits.
A loop of one's own keeps them itself:

    with ps.using(policy, delays=delays):  # delays = ps.Delays(), once
        model.loss(x, y).backward()
    delays.advance(policy.delayed)

Rules and edge cases are those of Transformer Engine at d0067d0d, transformer_engine/common/recipe/
delayed_scaling.cu, kernel `amax_and_scale_update_impl`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, isnan

import numpy as np

from precsim.backend import cupy as device
from precsim.formats.arrays import Array, array_module
from precsim.formats.scaled import FP32

ALGORITHMS = ("max", "most_recent")

_SPELLING = re.compile(r"(max|most_recent)(?:@([1-9]\d*))?(?:-(\d+))?")


@dataclass(frozen=True)
class Delayed:
    """How factors follow from a window of amax: DelayedScaling's parameters, by the same defaults.

    `length`: amax in the window, the newest included.  `algorithm`: the largest of them ("max"), or
    the newest ("most_recent").  `margin`: the factor is divided by 2^margin, room for growth.
    Written "max@1024", "most_recent@16-1".  Raises `ValueError` for anything else.
    """

    algorithm: str = "max"
    length: int = 1024
    margin: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS or self.length < 1 or not 0 <= self.margin < 64:
            msg = (
                f"delayed scaling by {self.algorithm!r} over {self.length} with margin "
                f"{self.margin}: expected {' or '.join(ALGORITHMS)}, a length of 1 or more, and a "
                "margin from 0 to 63"
            )
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str | Delayed) -> Delayed:
        """Read what `str` wrote: ALGORITHM[@LENGTH][-MARGIN]."""
        if isinstance(text, Delayed):
            return text
        match = _SPELLING.fullmatch(text)
        if match is None:
            msg = f"delayed={text}: expected max@LENGTH or most_recent@LENGTH, and perhaps -MARGIN"
            raise ValueError(msg)
        return cls(match[1], int(match[2] or cls.length), int(match[3] or cls.margin))

    def __str__(self) -> str:
        return f"{self.algorithm}@{self.length}" + (f"-{self.margin}" if self.margin else "")


@dataclass(frozen=True)
class AmaxHistory:
    """What one place has seen: its amax, the newest last, and the factor that follows from them."""

    factor: float = 1.0
    amaxes: tuple[float, ...] = ()

    def after(self, amax: float, largest: float, rule: Delayed) -> AmaxHistory:
        """Return the history after a step that saw `amax`; `largest` is the format's largest value.

        A window without anything but zeros, or whose amax is infinite or NaN, keeps the factor; by
        "max" a NaN does not count, and an infinity counts for as long as it is in the window.  A
        factor beyond float32 is its largest number.
        """
        amaxes = (*self.amaxes, amax)[-rule.length :]
        known = amax
        if rule.algorithm == "max":
            known = max(0.0, *(seen for seen in amaxes if not isnan(seen)))
        if not (isfinite(known) and known > 0):
            return AmaxHistory(self.factor, amaxes)
        with np.errstate(over="ignore"):
            factor = np.float32(largest * 2.0**-rule.margin) / np.float32(known)
        return AmaxHistory(min(float(factor), FP32.max), amaxes)


class Delays:
    """The histories of all places of a run, and what the step that is under way has seen.

    A place is a scope and what a tensor is there ("blocks.0.fc1/weight"); tensors that share one
    share a factor, and their amax is the largest of theirs.
    """

    def __init__(self, histories: Mapping[str, AmaxHistory] | None = None) -> None:
        self.histories = dict(histories or {})
        self._seen: dict[str, tuple[list[Callable[[], float]], float]] = {}

    @property
    def seen(self) -> bool:
        """Whether any tensor came by since the last `advance`."""
        return bool(self._seen)

    def factor(self, place: str) -> float:
        """Return what tensors in this place are multiplied with in this step."""
        history = self.histories.get(place)
        return 1.0 if history is None else history.factor

    def see(self, place: str, values: Array, largest: float) -> None:
        """Note the largest magnitude of a tensor, of its numbers (a NaN is none), in float32."""
        seen, _ = self._seen.get(place, ([], largest))
        seen.append(_amax(values))
        self._seen[place] = seen, largest

    def advance(self, rule: Delayed) -> None:
        """End a forward and backward pass: factors follow from what it saw."""
        for place, (seen, largest) in self._seen.items():
            with np.errstate(over="ignore"):
                amax = max(float(np.float32(amax())) for amax in seen)
            history = self.histories.get(place, AmaxHistory())
            self.histories[place] = history.after(amax, largest, rule)
        self._seen = {}


def _amax(values: Array) -> Callable[[], float]:
    """Return the largest magnitude that is no NaN; a device has it when it is asked for."""
    if values.size and array_module(values) is not np:
        return device.largest(values)
    magnitudes = np.nan_to_num(np.abs(values), nan=0.0, posinf=np.inf)
    amax = float(magnitudes.max(initial=0.0))
    return lambda: amax
