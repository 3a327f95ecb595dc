"""Every one of the 2^32 float32 inputs, for a format, a rounding mode and an overflow rule.

The positive float32 numbers in ascending order have the bit patterns 0, 1, 2 ..., so a block of
consecutive patterns is a sorted array, and what the format makes of it is a few runs of equal
values, whose ends `tables.side` knows.  The kernel is called on every pattern; building the runs
and comparing them costs less than the call.

Stochastic rounding has a random word beside every input; the sweep gives all inputs of a chunk the
same word, and every chunk another one, the lowest, the highest and the middle ones among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim import testing
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.proofs.tables import MOST_BITS, Side, side

Array = npt.NDArray[Any]

CHUNK = 1 << 22
"""Inputs between two looks at the clock: the unit of progress, of resuming and of random words."""
CHUNKS = (1 << 32) // CHUNK
PIECE = 1 << 17
"""Inputs in one call of the kernel: input, output and expectation stay in cache."""
FIRST_NAN = 0x7F800001


@dataclass(frozen=True)
class Case:
    """One thing to prove: a format, a rounding mode and an overflow rule."""

    format: Format
    rounding: Rounding
    overflow: Overflow

    def __str__(self) -> str:
        return f"{self.format.name} {self.rounding.value} {self.overflow.value}"


@dataclass(frozen=True)
class Mismatch:
    """The first input of a chunk on which kernel and table differ: float32 bit patterns."""

    case: str
    input: int
    got: int
    expected: int
    word: int | None = None
    count: int = 1

    def __str__(self) -> str:
        text = f"{self.case}: {_shown(self.input)} gave {_shown(self.got)}, "
        text += f"expected {_shown(self.expected)}"
        return text + (f", random word {self.word:#010x}" if self.word is not None else "")


Quantizer = Callable[[Array, Case, Array], Array]


def kernel(x: Array, case: Case, words: Array) -> Array:
    """Round as `precsim.quantize` does; what the sweep tests unless told otherwise."""
    random = words if case.rounding is Rounding.STOCHASTIC else None
    return quantize(x, case.format, case.rounding, case.overflow, random)


def cases(
    formats: Sequence[Format] = (), roundings: Sequence[Rounding] = (), widest: int = 16
) -> list[Case]:
    """Return the cases for these formats and modes; none given means all up to `widest` bits.

    A format without NaN has one overflow rule (it saturates), so it is listed once.
    """
    chosen = formats or [f for f in testing.GRIDS if f.bits <= widest]
    return [
        Case(fmt, rounding, overflow)
        for rounding in roundings or Rounding
        for fmt in chosen
        for overflow in (Overflow if fmt.has_nan else (Overflow.SATURATE,))
    ]


def check_supported(fmt: Format) -> None:
    """Raise `ValueError` for a format that the sweep cannot prove."""
    if fmt.bits > MOST_BITS or fmt.exp_bits > 8:
        msg = (
            f"{fmt.name} has {fmt.bits} bits, {fmt.exp_bits} of them exponent: the sweep of all "
            f"float32 inputs takes formats of at most {MOST_BITS} bits within float32's range"
        )
        raise ValueError(msg)


def sweep(
    case: Case, start: int = 0, threads: int = 1, quantizer: Quantizer = kernel
) -> Iterator[tuple[int, Mismatch | None]]:
    """Check chunk after chunk from number `start` on; yield (chunks done so far, first mismatch).

    Stops after the first batch of `threads` chunks that has a mismatch.
    """
    check_supported(case.format)
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(range(start, CHUNKS), threads):
            found = [m for m in pool.map(lambda n: check_chunk(case, n, quantizer), batch) if m]
            yield batch[-1] + 1, found[0] if found else None
            if found:
                return


def _batches(numbers: range, size: int) -> Iterator[tuple[int, ...]]:
    for first in range(numbers.start, numbers.stop, size):
        yield tuple(range(first, min(first + size, numbers.stop)))


def check_chunk(
    case: Case, chunk: int, quantizer: Quantizer = kernel, inputs: int = CHUNK
) -> Mismatch | None:
    """Check the first `inputs` patterns of a chunk; chunks count through the positive numbers
    first, from 0 over infinity to the last NaN, and then through the negative ones.
    """
    negative, start = chunk >= CHUNKS // 2, chunk % (CHUNKS // 2) * CHUNK
    word = word_of(chunk) if case.rounding is Rounding.STOCHASTIC else None
    steps = side(case.format, case.rounding, case.overflow, negative, np.float32, word)
    firsts = steps.firsts.view(np.uint32).astype(np.int64)
    patterns = np.arange(PIECE, dtype=np.uint32)
    words = np.full(PIECE, word or 0, np.uint32)
    x = np.empty(PIECE, np.float32)
    sign = np.uint32(0x80000000 if negative else 0)
    for at in range(start, start + inputs, PIECE):
        np.add(patterns, np.uint32(at) | sign, out=x.view(np.uint32))
        got = quantizer(x, case, words)
        want, numbers = _expected(steps, firsts, at)
        if _equal(got, want, numbers):
            continue
        wrong = np.flatnonzero(~_same(got, want))
        bad, is_, should = (int(a.view(np.uint32)[wrong[0]]) for a in (x, got, want))
        return Mismatch(str(case), bad, is_, should, word, wrong.size)
    return None


def _expected(steps: Side, firsts: Array, at: int) -> tuple[Array, int]:
    """Return what the PIECE patterns from `at` on round to, and how many come before any NaN."""
    low, high = np.searchsorted(firsts, (at, at + PIECE - 1), side="right")
    edges = np.concatenate([[0], firsts[low:high] - at, [PIECE]])
    want = np.repeat(steps.results[low : high + 1], np.diff(edges))
    nan_inputs = min(max(FIRST_NAN - at, 0), PIECE)
    want[nan_inputs:] = steps.of_nan
    nan_runs = edges[:-1][np.isnan(steps.results[low : high + 1])]
    return want, int(min([nan_inputs, *nan_runs[:1]]))


def _equal(got: Array, want: Array, numbers: int) -> bool:
    """Whether two arrays agree bit for bit in their first `numbers`, and in NaN or not after."""
    head = np.array_equal(got[:numbers].view(np.uint32), want[:numbers].view(np.uint32))
    if numbers == want.size or not head:
        return head
    return bool(_same(got[numbers:], want[numbers:]).all())


def _same(got: Array, want: Array) -> Array:
    """Where two arrays hold the same numbers: equal bits, or two NaNs of any payload."""
    equal = got.view(np.uint32) == want.view(np.uint32)
    return equal | (np.isnan(got) & np.isnan(want))  # type: ignore[no-any-return]


def word_of(chunk: int) -> int:
    """Return the random word of a chunk: in every eight chunks the two ends and the middle."""
    special = {0: 0, 1: 2**32 - 1, 2: 2**31 - 1, 3: 2**31}
    return special.get(chunk % 8, (chunk + 1) * 0x9E3779B1 % 2**32)


def estimate(todo: Sequence[Case], threads: int = 1) -> float:
    """Return the seconds that the sweep of these cases will take, from a sample of each."""
    sample = 8 * PIECE
    began = time.perf_counter()
    for case in todo:
        check_chunk(case, 253, inputs=sample)  # around 1
    return (time.perf_counter() - began) * (2**32 / sample) / threads


def _shown(bits: int) -> str:
    value = np.array(bits, np.uint32).view(np.float32)
    return f"{bits:#010x} ({value[()]!s})"
