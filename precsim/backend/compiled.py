"""Which kernels round NumPy's arrays: NumPy's own, or the compiled ones where Numba is installed.

The bits are the same, so that it is a matter of speed alone.  Importing Numba and compiling take a
second or two; so this waits until a process has rounded so much that they pay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import Any

from precsim.backend import threads
from precsim.backend.cupy import BackendError
from precsim.formats import blocks, kernels
from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Choice, Mode, Overflow
from precsim.formats.scaled import Scaled
from precsim.formats.tiling import Tiling

ENOUGH = 1 << 27
"""Elements that a process rounds with NumPy before it looks for something faster."""
LARGE = 1 << 6
"""Elements of the smallest array for which calling a compiled kernel pays."""


class Tier(Choice):
    """What rounds NumPy's arrays."""

    AUTO = "auto"
    """Compiled kernels, if Numba is installed, after `ENOUGH` elements; else NumPy."""
    NUMPY = "numpy"
    """NumPy."""
    NUMBA = "numba"
    """Compiled kernels from the first element on."""


_tier: ContextVar[Tier] = ContextVar("tier", default=Tier.AUTO)
_rounded = 0


@contextmanager
def tier(name: str | Tier) -> Iterator[None]:
    """Within the block, round NumPy's arrays by this `Tier`; no rounded bit depends on it.

    (The sums that observers are told may differ in their last digits: they are added up in another
    order.)
    Raises `ValueError` for an unknown name, and `BackendError` for "numba" where it is missing.
    """
    wanted = Tier(name)
    if wanted is Tier.NUMBA and _fused() is None:
        msg = (
            f"compiled kernels need Numba, which does not import here ({_loaded()}): try "
            "`pip install 'precsim[fast]'`, or stay on NumPy's kernels"
        )
        raise BackendError(msg)
    token = _tier.set(wanted)
    try:
        yield
    finally:
        _tier.reset(token)


_steady: ContextVar[bool] = ContextVar("steady", default=False)


@contextmanager
def steady() -> Iterator[None]:
    """Within the block, what counts is chosen by what is installed, not by how much was rounded before.

    So a run that another process goes on with adds up the sums that it has in the same order.
    """
    token = _steady.set(True)
    try:
        yield
    finally:
        _steady.reset(token)


def state() -> str:
    """Say what rounds NumPy's arrays here, and what else could; that is found out by importing it."""
    if _tier.get() is Tier.NUMPY:
        return "NumPy"
    loaded = _loaded()
    if isinstance(loaded, ModuleNotFoundError):
        return "NumPy; faster with `pip install 'precsim[fast]'`"
    if isinstance(loaded, ImportError):
        return f"NumPy; faster if Numba, which is installed, did import: {loaded}"
    numba = version("numba")
    if _tier.get() is Tier.NUMBA:
        return f"compiled, Numba {numba}, {_threads()}"
    return f"NumPy, then compiled: Numba {numba}, {_threads()}, after the first {ENOUGH:,} elements"


def _threads() -> str:
    """Say how many threads round one array."""
    if threads.count() == 1:
        return "one thread"
    return f"{threads.count()} threads from {2 * threads.PIECE:,} elements on"


def round_into(
    x: Array, out: Array, fmt: Format, rounding: Mode, overflow: Overflow, words: Array | None
) -> bool:
    """Round as `precsim.formats.kernels.round_into` does, in one pass; False: it is not done."""
    fused = _kernels(x.size)
    done = fused is not None and fused.round_into(x, out, fmt, rounding, overflow, words)
    return bool(done)


def round_blocks(
    x: Array,
    out: Array,
    tiling: Tiling,
    fmt: Scaled,
    rounding: Mode,
    words: Array | None,
    factor: float,
) -> bool:
    """Round as `precsim.formats.blocks.quantize_into` does, in one pass; False: it is not done."""
    if _kernels(x.size) is None:
        return False
    from precsim.backend import fused_blocks

    return fused_blocks.round_into(x, out, tiling, fmt, rounding, words, factor)


def multiply(
    a: Array,
    b: Array,
    total: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None,
) -> bool:
    """Add the product of (S, M, K) and (S, K, N) to `total`, and round it after every addition.

    A mode that draws random words has those for one addition, K = 1.  False: it is left to NumPy.
    """
    if _kernels(total.size * a.shape[-1], counts=False) is None:
        return False
    from precsim.backend import fused_sums

    return fused_sums.multiply(a, b, total, fmt, rounding, overflow, words)


def add(
    total: Array,
    term: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None,
    *,
    from_zero: bool,
) -> bool:
    """Add a term to the total, or to zero, and round it, both contiguous; False: it is not done."""
    if _kernels(total.size, counts=False) is None:
        return False
    from precsim.backend import fused_sums

    return fused_sums.add(total, term, fmt, rounding, overflow, words, from_zero=from_zero)


def evaluate(steps: tuple[Any, ...], operands: Sequence[Array], out: Array) -> bool:
    """Write a formula to `out` (`precsim.backend.formula`), in one pass; False: it is not done."""
    if _kernels(out.size, counts=False) is None:
        return False
    done: bool = _fused_formula().run(steps, operands, out)
    return done


def random(key: tuple[int, int], block: int, blocks: int) -> Array | None:
    """Return so many blocks of four 64-bit Philox words, flat; None: they are left to NumPy."""
    if _kernels(4 * blocks, counts=False) is None:
        return None
    from precsim.backend import fused_random

    return fused_random.philox(key, block, blocks)


def _kernels(size: int, *, counts: bool = True) -> Any:
    """Return the module of compiled kernels if they are to do this much work, or None.

    `counts`: otherwise it goes to `ENOUGH`.
    """
    global _rounded
    wanted = _tier.get()
    if wanted is not Tier.NUMBA:
        if wanted is Tier.NUMPY or size < LARGE:
            return None
        if _rounded < ENOUGH:
            _rounded += size if counts else 0
            return None
    return _fused()


def counting(size: int) -> Any:
    """Return the module that rounds and counts what rounding did (`fused_counts`); None: use NumPy.

    In the same tiers as it rounds, of arrays of any size: counting takes NumPy a dozen calls; where it
    is to be `steady`, from the first element on.
    """
    return None if _watching(size) is None else _fused_counts()


def _watching(size: int, *, counts: bool = True) -> Any:
    """Return the module of compiled kernels if what they round or did is to be counted so, or None."""
    wanted = _tier.get()
    if wanted is Tier.NUMBA or (wanted is Tier.AUTO and _steady.get()):
        return _fused()
    return _kernels(max(size, LARGE), counts=counts)


@cache
def _fused_counts() -> ModuleType:
    from precsim.backend import fused_counts

    return fused_counts


@cache
def _fused_formula() -> ModuleType:
    from precsim.backend import fused_formula

    return fused_formula


def comparing(size: int) -> Any:
    """Return the module that compares results with float64 (`fused_errors`), as `counting` does."""
    if _watching(size, counts=False) is None:
        return None
    from precsim.backend import fused_errors

    return fused_errors


@cache
def _fused() -> ModuleType | None:
    """Return the module of compiled kernels; None where Numba, which they need, does not import."""
    loaded = _loaded()
    return None if isinstance(loaded, ImportError) else loaded


@cache
def _loaded() -> ModuleType | ImportError:
    """Return the module of compiled kernels, which imports Numba, or what kept it from that."""
    try:
        from precsim.backend import fused
    except ImportError as error:
        return error
    return fused


kernels.ONE_PASS["numpy"] = round_into
blocks.ONE_PASS["numpy"] = round_blocks
