"""The one file that imports CuPy, and only when somebody asks for it; and what CuPy compiles.

The kernels are `precsim.backend.one_pass`'s: rounding, with whatever the mode and the overflow rule
ask for, and random words, each a single pass over the device's memory; and `one_pass_counts`', which
say what rounding did.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from precsim.backend import grid, one_pass, one_pass_counts
from precsim.formats import kernels
from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow


class BackendError(RuntimeError):
    """A backend was asked for that this machine cannot offer."""


def load() -> ModuleType:
    """Return the module `cupy`, ready to compute.

    Raises `BackendError`, with the remedy, where CuPy is not installed, does not load, or finds
    no device.
    """
    try:
        import cupy
    except ImportError as error:
        msg = (
            f"the cupy backend needs CuPy, which does not import here ({error}): "
            "try `pip install 'precsim[gpu]'` for CUDA 13, `pip install 'precsim[gpu12]'` "
            "for CUDA 12, or stay on the numpy backend"
        )
        raise BackendError(msg) from error
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        msg = (
            f"CuPy {cupy.__version__} is installed, but CUDA does not start ({error}): check the "
            "driver with `nvidia-smi`, try precsim[gpu12] instead of precsim[gpu] for an older "
            "driver, or stay on the numpy backend"
        )
        raise BackendError(msg) from error
    if devices == 0:
        msg = (
            f"CuPy {cupy.__version__} is installed, but it sees no device: check "
            "CUDA_VISIBLE_DEVICES, or stay on the numpy backend"
        )
        raise BackendError(msg)
    kernels.ONE_PASS["cupy"] = round_into
    return cupy  # type: ignore[no-any-return]


def round_into(
    x: Array, out: Array, fmt: Format, rounding: Mode, overflow: Overflow, words: Array | None
) -> bool:
    """Round x into `out` as `precsim.formats.kernels.round_into` does, in one pass; True."""
    kernel = _kernel(
        "precsim_round_all", f"T x, uint32 word, {_PARAMETERS}", "T y",
        f"y = precsim_round(x, word, {one_pass.ARGUMENTS})", one_pass.ROUND,
    )  # fmt: skip
    word = np.uint32(0) if words is None else words.reshape(-1)
    kernel(x.reshape(-1), word, *one_pass.rule(fmt, rounding, overflow), out.reshape(-1))
    return True


def multiply(
    a: Array, b: Array, out: Array, chunk: int, inner: one_pass.Rule, outer: one_pass.Rule
) -> None:
    """Write the product of (S, M, K) and (S, K, N) to `out`, one thread an element.

    The total is rounded by `inner` after every product; every `chunk` of them (0: never) it is added
    to a second total, which is rounded by `outer`.
    """
    real = _REAL[str(out.dtype)]
    _, height, depth = a.shape
    width = b.shape[-1]
    kernel = _kernel(
        f"precsim_matmul_{real}",
        f"raw T a, raw T b, int64 height, int64 depth, int64 width, int64 chunk, {_PARAMETERS}, "
        + one_pass.OUTER_PARAMETERS.replace("double", "float64").replace("int ", "int32 "),
        "T y",
        f"long long row = i / width;"
        f"y = precsim_dot_{real}(&a[row * depth], &b[row / height * depth * width + i % width],"
        f"width, depth, chunk, {one_pass.ARGUMENTS}, {one_pass.OUTER_ARGUMENTS})",
        one_pass.ROUND + one_pass.dot(real),
    )
    kernel(a, b, height, depth, width, chunk, *inner, *outer, out)


def philox(xp: Any, first: int, blocks: int, key: tuple[int, int]) -> Array:
    """Return `blocks` blocks of four 64-bit words, from counter `first` on, flat."""
    out = xp.empty(4 * blocks, np.uint64)
    kernel = _kernel(
        "precsim_philox_all", "uint64 first, uint64 k0, uint64 k1", "raw uint64 words",
        "precsim_philox(first + i, 0, 0, 0, k0, k1, &words[4 * i])", one_pass.PHILOX,
    )  # fmt: skip
    if blocks:
        kernel(*(np.uint64(number) for number in (first, *key)), out, size=blocks)
    return out  # type: ignore[no-any-return]


def count(
    before: Array,
    after: Array,
    normal: float,
    largest: float,
    lowest: int,
    bins: int,
    *,
    histogram: bool,
) -> one_pass_counts.Counted:
    """Count what rounding made of `before`, in one pass over arrays of one shape and dtype.

    `normal` is the format's smallest normal value (0: results are never subnormal), `largest` its
    largest (inf: none saturates).  The histogram has `bins` exponents from `lowest` on; without
    `histogram` it stays empty.
    """
    import cupy

    before, after = cupy.ascontiguousarray(before), cupy.ascontiguousarray(after)
    real = _REAL[str(before.dtype)]
    kernel = _raw_kernel("precsim_count", one_pass_counts.source(real, lowest, bins, rounds=False))
    found = cupy.zeros(one_pass_counts.room(before.size, bins), np.uint64)
    limits = np.float64(normal), np.float64(largest), np.int32(histogram)
    blocks = one_pass_counts.blocks(before.size)
    kernel((blocks,), (grid.THREADS,), (before, np.int64(before.size), *limits, found, after))
    return one_pass_counts.read(found.get(), bins)


_REAL = {"float32": "float", "float64": "double"}
_PARAMETERS = one_pass.PARAMETERS.replace("double", "float64").replace("int ", "int32 ")


@cache
def _kernel(name: str, inputs: str, outputs: str, operation: str, functions: str) -> Any:
    """Return a kernel that CuPy compiles when it is first called, and keeps."""
    import cupy

    return cupy.ElementwiseKernel(
        inputs, outputs, operation, name, no_return=True,
        preamble=f"#define PRECSIM __device__\n{one_pass.TYPES}{functions}",
        options=one_pass.NO_CONTRACTION,
    )  # fmt: skip


@cache
def _raw_kernel(name: str, code: str) -> Any:
    """Return a kernel of blocks of threads that CuPy compiles when it is first called, and keeps."""
    import cupy

    return cupy.RawKernel(
        f"{grid.DEVICE}{one_pass.TYPES}{code}", name, options=one_pass.NO_CONTRACTION
    )
