"""Several threads over the pieces of one large array.

Compiled kernels hold no lock of Python's, so threads of one process run them side by side.  An array
is rounded after the BLAS has multiplied and before it multiplies again, so that both never want the
same cores; what asks for few threads of the BLAS (OMP_NUM_THREADS) gets few here, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

from precsim.backend.cupy import BackendError

PIECE = 1 << 20
"""Elements of the smallest piece for which waking a thread pays."""

VARIABLES = ("PRECSIM_THREADS", "OMP_NUM_THREADS")
"""Environment variables that say how many threads there are, the first that is set."""


@cache
def count() -> int:
    """Return how many threads may round at once: by `VARIABLES`, else one for each core.

    Raises `BackendError` for anything but a whole number from 1 on.
    """
    for name in VARIABLES:
        if text := os.environ.get(name, "").partition(",")[0].strip():
            if not text.isdecimal() or int(text) < 1:
                msg = f"{name}={text}: expected a whole number of threads, 1 or more"
                raise BackendError(msg)
            return int(text)
    return cores()


def in_pieces(run: Callable[[int, int], None], size: int) -> None:
    """Call ``run(start, stop)`` for pieces that make up `size` elements, at once where it pays.

    What one of them raises is raised when all have ended.
    """
    pieces = min(count(), size // PIECE)
    if pieces < 2:
        run(0, size)
        return
    length = -(-size // pieces // 64) * 64  # whole cache lines
    later = [
        _pool().submit(run, start, min(start + length, size))
        for start in range(length, size, length)
    ]
    try:
        run(0, length)
    finally:
        wait(later)
    for piece in later:
        piece.result()


def cores() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, count() - 1), "precsim-rounding")


if hasattr(os, "register_at_fork"):  # a child has the pool's object, and none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
