"""How a kernel whose threads work together is written, so that a host's C compiler takes it, too.

A device runs such a kernel in blocks of `THREADS` threads, which share a little memory and wait for
each other.  Between two waits no thread sees what another one does.  So the code is written in
stages, each for all threads of a block, and on a host a stage is a loop over them:

    PRECSIM_THREADS(t)      what thread t does
    PRECSIM_WAIT            nobody goes on before all have come here

What is declared in a stage ends with it; what is declared outside is the same for all threads of a
block.  `PRECSIM_SHARED` memory belongs to a block, and holds anything at first.  `PRECSIM_ADD` and
`PRECSIM_RAISE` change a place that several threads change, a sum or a maximum: of integers, so that
the order makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

THREADS = 256
"""Threads of a block; a power of two."""

DEVICE = """
#define PRECSIM __device__
#define PRECSIM_KERNEL extern "C" __global__ void
#define PRECSIM_SHARED __shared__
#define PRECSIM_BLOCK ((long long)blockIdx.x)
#define PRECSIM_BLOCKS ((long long)gridDim.x)
#define PRECSIM_THREADS(t) { const int t = (int)threadIdx.x;
#define PRECSIM_WAIT } __syncthreads();
#define PRECSIM_ADD(place, value) atomicAdd(place, value)
#define PRECSIM_RAISE(place, value) atomicMax(place, value)
"""
"""What these words mean in CUDA."""

_KINDS: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "long long": np.int64,
}


def numbers(parameters: str, values: Iterable[float]) -> tuple[Any, ...]:
    """Return numbers as arguments of a kernel, which takes them by their width, as declared."""
    kinds = [parameter.strip().rpartition(" ")[0] for parameter in parameters.split(",")]
    return tuple(_KINDS[kind](value) for kind, value in zip(kinds, values, strict=True))
