"""What the step player shows: chosen steps of a trace, a row for each op, its exponents.

A long run has more steps than a page can hold.  Kept are the first and the last, those that were
asked for (trouble, skips), and others evenly between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.engine.policy import Policy
from precsim.observe.counters import OpCounts
from precsim.runs.columns import OpTable
from precsim.runs.recorder import kept_every
from precsim.runs.run import StoredRun
from precsim.runs.store import Entry, read_index

MOST_STEPS = 60
MOST_ROWS = 32_000
"""Ops of all steps of all runs together, a row each."""

COUNTS = (
    "n", "zeros", "flushed", "subnormal", "overflow", "saturated", "nan", "swamped", "updates",
)  # fmt: skip

Rows = dict[str, Any]


def collect(run: StoredRun, must: Iterable[int] = (), rows: int = MOST_ROWS) -> dict[str, Any]:
    """Return the ops that were met, and a set of columns for each chosen step, as JSON holds them.

    ``ops`` are [path, call, format]; a step's columns have a value for each op that ran in it, in
    order: ``op`` its number, counts as in `Health` (``saturated`` is a part of ``overflow``),
    ``chance`` whether it is rounded stochastically, ``err`` its local error in units of u, ``amax``,
    ``hist`` its exponents: the first one, then how many values have it and each after it.
    ``recorded`` counts the steps of the trace, of which ``steps`` are shown.
    """
    entries = read_index(run.path).of("ops")
    recorded = [step for entry in entries for step in _steps_of(entry)]
    numbers: dict[tuple[str, int, str], int] = {}
    found: list[Rows] = []
    per_step = _rows_in(run, recorded[0]) if recorded else 1
    chosen = set(choose(recorded, min(MOST_STEPS, max(2, rows // max(1, per_step))), must))
    for entry in entries:
        wanted = [step for step in _steps_of(entry) if step in chosen]
        if not wanted:
            continue
        table = run.ops(range(entry.first, entry.last + 1))
        parts = [(step, table.where(steps=range(step, step + 1))) for step in wanted]
        found += [
            {"step": s, "chance": _by_chance(run.policy_at(s), part)} | _columns(part, numbers)
            for s, part in parts
            if len(part)
        ]
    return {
        "recorded": len(recorded),
        "ops": [list(place) for place in numbers],
        "sources": _sources(run, numbers, found),
        "steps": found,
    }


def choose(recorded: list[int], most: int, must: Iterable[int] = ()) -> list[int]:
    """Return at most `most` of the recorded steps: ends, those that must be, and evenly others."""
    if len(recorded) <= most:
        return recorded
    known = set(recorded)
    kept = list(dict.fromkeys(s for s in (*recorded[:1], *recorded[-1:], *must) if s in known))
    kept = kept[:most]
    between = np.linspace(0, len(recorded) - 1, most - len(kept) + 2)[1:-1]
    return sorted({*kept, *(recorded[round(i)] for i in between.tolist())})


def _steps_of(entry: Entry) -> list[int]:
    every = kept_every(entry)
    return [step for step in range(entry.first, entry.last + 1) if step % every == 0]


def _rows_in(run: StoredRun, step: int) -> int:
    return len(run.ops(range(step, step + 1)))


def _by_chance(policy: Policy, table: OpTable) -> list[int]:
    places = zip(*(table[name].tolist() for name in ("op", "role", "scope")), strict=True)
    ops = [OpCounts(op=op, role=role, scope=scope) for op, role, scope in places]
    return [int(op.precision(policy).by_chance) for op in ops]


def _columns(table: OpTable, numbers: dict[tuple[str, int, str], int]) -> Rows:
    places = zip(
        table["path"].tolist(), table["call"].tolist(), table["format"].tolist(), strict=True
    )
    columns: Rows = {"op": [numbers.setdefault(place, len(numbers)) for place in places]}
    parts = {name: table[name] for name in ("n", "zeros", "flushed", "subnormal", "swamped")}
    parts["overflow"] = table["overflowed"] + table["saturated"]
    parts["saturated"] = table["saturated"]
    parts["nan"], parts["updates"] = table["nonfinite_in"], table["updates"]
    errors = np.where(np.isnan(table["err_rel"]), table["relative_error"], table["err_rel"])
    u = table["u"]
    columns |= {name: parts[name].tolist() for name in COUNTS}
    columns["err"] = [_short(e) for e in np.divide(errors, u, out=np.zeros(len(u)), where=u > 0)]
    columns["amax"] = [_short(a) for a in table["amax"]]
    columns["hist"] = [_trimmed(h) for h in table["histogram"]]
    return columns


def _trimmed(histogram: npt.NDArray[np.int64]) -> list[int]:
    nonzero = np.flatnonzero(histogram)
    if not len(nonzero):
        return []
    first, last = int(nonzero[0]), int(nonzero[-1])
    return [first, *histogram[first : last + 1].tolist()]


def _short(value: float) -> float | None:
    """Return four digits of a number; None for what is none, which JSON does not have."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _sources(
    run: StoredRun, numbers: dict[tuple[str, int, str], int], found: list[Rows]
) -> list[str]:
    """Return file and line of the code that called each op, as the first and the last step have it."""
    if not found:
        return []
    known: dict[str, str] = {}
    for shown in found[:1] + found[-1:]:
        table = run.ops(range(shown["step"], shown["step"] + 1))
        known |= dict(zip(table["path"].tolist(), table["source"].tolist(), strict=True))
    return [known.get(path, "") for path, _, _ in numbers]
