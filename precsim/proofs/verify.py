"""What `precsim verify` runs: the proofs one after the other, each giving a line of a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precsim import testing
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.registry import format as resolve
from precsim.proofs import arithmetic, exhaustive, stratified
from precsim.proofs.exhaustive import CHUNKS, Case
from precsim.proofs.state import State
from precsim.proofs.tables import MOST_BITS

SAVED_EVERY = 5.0
"""Seconds between two writings of the state file."""


@dataclass(frozen=True)
class Row:
    """One proof of one format: how many results were compared, and what was found."""

    proof: str
    format: str
    rounding: str
    overflow: str
    inputs: int
    mismatches: int
    seconds: float
    found: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def quick(formats: Sequence[Format] = (), roundings: Sequence[Rounding] = ()) -> Iterator[Row]:
    """Run the proofs that take seconds; yield a row for each format and proof, or the first failure.

    "codes": every code of a format of up to 16 bits; "edges": every value, midpoint and neighbour,
    in both carriers, with both overflow rules; "arithmetic": all pairs of formats of up to 8 bits,
    samples of the others up to fp32.  No formats given means all, no roundings all seven.
    """
    modes = tuple(roundings or Rounding)
    for fmt in formats or testing.GRIDS:
        for proof, check in _quick_proofs(fmt, modes):
            began = time.perf_counter()
            compared, found = 0, None
            try:
                compared = check()
            except AssertionError as error:
                found = str(error)
            seconds = time.perf_counter() - began
            named = ", ".join(modes) if roundings else "all"
            yield Row(proof, fmt.name, named, "both", compared, int(bool(found)), seconds, found)


def _quick_proofs(
    fmt: Format, modes: tuple[Rounding, ...]
) -> Iterator[tuple[str, Callable[[], int]]]:
    if fmt.bits <= 16:
        yield "codes", lambda: stratified.check_codes(fmt)
    yield "edges", lambda: sum(_edges(fmt, mode) for mode in modes)
    if resolve("fp32").contains(fmt):  # type: ignore[union-attr]
        yield "arithmetic", lambda: sum(_arithmetic(fmt, mode) for mode in modes)


def _edges(fmt: Format, mode: Rounding) -> int:
    listed = fmt.bits <= 16
    check = stratified.check_kernels if listed else stratified.check_wide
    return sum(
        check(fmt, mode, overflow, dtype)
        for overflow in Overflow
        for dtype in stratified.carriers(fmt)
    )


def _arithmetic(fmt: Format, mode: Rounding) -> int:
    """Check every operation in one mode; the draws of "stochastic" are exact up to 19 bits only."""
    word = 0x9E3779B1 if mode is Rounding.STOCHASTIC else None
    if word is not None and fmt.precision > 19:
        return 0
    compared = 0
    for op in arithmetic.OPERATIONS:
        operands = arithmetic.samples(fmt, op, 4000 if fmt.bits <= MOST_BITS else 400)
        if fmt.bits <= 8 and op != "fma":
            operands = (arithmetic.all_codes(fmt),) if op == "sqrt" else arithmetic.pairs(fmt)
        if fmt.bits <= MOST_BITS:
            compared += arithmetic.check_by_places(op, operands, fmt, mode, word=word)
        else:
            compared += arithmetic.check_against_fractions(op, operands, fmt, mode)
    return compared


def sweep(
    todo: Sequence[Case],
    state: State,
    threads: int = 1,
    tick: Callable[[Case, int], None] = lambda case, chunks: None,
) -> Iterator[Row]:
    """Check every float32 input for each case, from where `state` says; yield a row for each.

    `tick` is told how many of the `CHUNKS` of a case are done.  Stops after the first case with a
    mismatch.  The state is written every few seconds, and whenever this ends, however it ends.
    """
    try:
        for case in todo:
            progress = state.of(case)
            last = saved = time.perf_counter()
            tick(case, progress.chunks)
            if progress.chunks < CHUNKS and progress.mismatch is None:
                for chunks, mismatch in exhaustive.sweep(case, progress.chunks, threads):
                    now = time.perf_counter()
                    progress.seconds += now - last
                    progress.chunks, progress.mismatch = chunks, mismatch
                    last = now
                    tick(case, chunks)
                    if now - saved > SAVED_EVERY:
                        saved = now
                        state.save()
            state.save()
            found = progress.mismatch
            yield Row(
                "all float32", case.format.name, case.rounding.value, case.overflow.value,
                progress.inputs, found.count if found else 0, progress.seconds,
                str(found) if found else None,
            )  # fmt: skip
            if found:
                return
    finally:
        state.save()
