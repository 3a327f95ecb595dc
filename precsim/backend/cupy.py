"""The one file that imports CuPy, and only when somebody asks for it; and what CuPy compiles.

The kernels are `precsim.backend.one_pass`'s: rounding, with whatever the mode and the overflow rule
ask for, and random words, each a single pass over the device's memory; `one_pass_blocks`', which
round blocks that share a scale; and `one_pass_counts`', which say what rounding
did, and round on the way where both are wanted.  A formula is a kernel as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from precsim.backend import grid, one_pass, one_pass_blocks, one_pass_counts, one_pass_flags
from precsim.backend.ledger import Ledger
from precsim.formats import accounting, blocks, kernels
from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow
from precsim.formats.scaled import FP32, TENSOR, Scaled
from precsim.formats.tiling import Tiling


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
    blocks.ONE_PASS["cupy"] = round_blocks
    accounting.ONE_PASS["cupy"] = account
    return cupy  # type: ignore[no-any-return]


def round_into(
    x: Array, out: Array, fmt: Format, rounding: Mode, overflow: Overflow, words: Array | None
) -> bool:
    """Round x into `out` as `precsim.formats.kernels.round_into` does, in one pass; True."""
    rule, real = one_pass.rule(fmt, rounding, overflow), _REAL[str(x.dtype)]
    how, code = _ROUNDING[real]
    kernel = _kernel(
        f"precsim_round_all_{real}",
        f"{x.dtype} x, uint32 word, {_declared(one_pass.parameters(real))}", f"{x.dtype} y",
        f"y = {how}(x, word, {one_pass.settled(rule)})", code,
    )  # fmt: skip
    word = np.uint32(0) if words is None else words.reshape(-1)
    kernel(x.reshape(-1), word, *rule, out.reshape(-1))
    return True


def round_blocks(
    x: Array,
    out: Array,
    tiling: Tiling,
    fmt: Scaled,
    rounding: Mode,
    words: Array | None,
    factor: float,
) -> bool:
    """Round as `precsim.formats.blocks.quantize_into` does, in one pass; True.

    Two passes where scales depend on the whole tensor, as those of two levels do.
    """
    import cupy

    plan = one_pass_blocks.plan(fmt, rounding, factor)
    whole, real = fmt.block == TENSOR, _REAL[str(x.dtype)]
    shape = one_pass_blocks.shape(tiling, whole=whole)
    threads, places = (grid.THREADS,), grid.numbers(one_pass_blocks.SHAPE, shape)
    source = one_pass_blocks.source
    top = cupy.zeros(2, np.uint64)
    if plan.needs_top or (whole and plan.kind != one_pass_blocks.GIVEN):
        limit = FP32.max if plan.kind == one_pass_blocks.TWO_FACTORS else np.finfo(np.float64).max
        ends = np.int32(plan.needs_top and not whole), np.float64(plan.amax_min), np.float64(limit)
        _raw_kernel("precsim_top", source, real, one_pass.ARGUMENTS, fmt.affine)(
            shape.grid, threads, (x, top, *ends, *places)
        )
    drawn = cupy.empty(0, np.uint32) if words is None else words
    numbers = grid.numbers(one_pass_blocks.PARAMETERS, plan.numbers)
    _raw_kernel("precsim_blocks", source, real, one_pass.settled(plan.element), fmt.affine)(
        shape.grid, threads,
        (x, out, drawn, np.int32(words is not None), top, np.int32(whole), *places, *numbers),
    )  # fmt: skip
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
    how = one_pass.settled(inner), one_pass.settled(outer, one_pass.OUTER_ARGUMENTS)
    kernel = _kernel(
        f"precsim_matmul_{real}",
        "raw T a, raw T b, int64 height, int64 depth, int64 width, int64 chunk, "
        + _declared(f"{one_pass.PARAMETERS}, {one_pass.OUTER_PARAMETERS}"),
        "T y",
        f"long long row = i / width;"
        f"y = precsim_dot_{real}(&a[row * depth], &b[row / height * depth * width + i % width],"
        f"width, depth, chunk, {one_pass.ARGUMENTS}, {one_pass.OUTER_ARGUMENTS})",
        one_pass.ROUND + one_pass.dot(real, *how),
    )
    kernel(a, b, height, depth, width, chunk, *inner, *outer, out)


def evaluate(steps: tuple[Any, ...], operands: Sequence[Array], out: Array) -> bool:
    """Write a formula to `out` (`precsim.backend.formula`), in one pass; True."""
    count = len(operands)
    names = [f"{'x' if n < count else 't'}{n}" for n in range(count + len(steps))]
    lines = []
    for name, (sign, *terms) in zip(names[count:], steps, strict=True):
        left, right = (names[t] if isinstance(t, int) else f"(T){t!r}" for t in terms)
        lines.append(f"T {name} = {left} {sign} {right}")
    inputs = ", ".join(f"T {name}" for name in names[:count])
    operation = "; ".join([*lines, f"y = {names[-1]}"])
    _kernel("precsim_formula", inputs, "T y", operation, "")(*operands, out)
    return True


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
    wanted: one_pass_counts.Wanted,
    rule: one_pass.Rule | None = None,
    words: Array | None = None,
) -> Callable[[], one_pass_counts.Counted]:
    """Count what rounding made of `before`, in one pass over contiguous arrays, alike in dtype.

    What was counted is fetched by who calls the result, together with all that is waiting.  With a
    `rule` it is rounded in the same pass, into `after`, which may be `before`; `words` are the
    random ones, if the rule's mode draws any.
    """
    import cupy

    real, size = _REAL[str(before.dtype)], before.size
    rounding = "" if rule is None else one_pass.settled(rule)
    choices = real, wanted.lowest, wanted.bins, rounding
    kernel = _raw_kernel("precsim_count", one_pass_counts.source, *choices)
    found = _LEDGER.place(cupy, one_pass_counts.room(size, wanted.bins))
    limits = *map(np.float64, wanted[:3]), np.int32(wanted.histogram)
    arguments: tuple[Any, ...] = (before, np.int64(size), *limits, found.there, after)
    if rule is not None:
        drawn = cupy.empty(0, np.uint32) if words is None else words
        numbers = grid.numbers(one_pass.parameters(real), rule)
        arguments += (drawn, np.int32(words is not None), *numbers)
    kernel((one_pass_counts.blocks(size),), (grid.THREADS,), arguments)
    return lambda: one_pass_counts.read(found.read(), wanted.bins)


def largest(x: Array) -> Callable[[], float]:
    """Return the largest magnitude that is a number, infinity among them; 0 if there is none.

    As with `count`, who calls the result fetches it.
    """
    import cupy

    found, kernel = _LEDGER.place(cupy, 1), one_pass_counts.largest
    grid_of_threads = (one_pass_counts.blocks(x.size),), (grid.THREADS,)
    arguments = cupy.ascontiguousarray(x), np.int64(x.size), found.there
    _raw_kernel("precsim_largest", kernel, _REAL[str(x.dtype)])(*grid_of_threads, arguments)
    return lambda: float(found.read().view(np.float64)[0])


def account(
    before: Array, after: Array, fmt: Format, rounding: Mode, words: Array | None = None
) -> dict[str, int]:
    """Count, in one pass over flat arrays, what `precsim.formats.accounting` counts."""
    import cupy

    rule = one_pass.rule(fmt, rounding, Overflow.IEEE)
    drawn = cupy.empty(0, np.uint32) if words is None else words
    draws, exponents = np.int32(words is not None), np.int32(not fmt.is_integer)
    numbers = grid.numbers(one_pass.PARAMETERS, rule)
    how = (drawn, draws, exponents, *numbers)
    return _flags("accounts", one_pass_flags.ACCOUNTS, (before, after), how)()


def updates(weight: Array, delta: Array, rounded: Array) -> Callable[[], dict[str, int]]:
    """Count updates that are not zero, and those of them that left the weight as it was.

    As with `count`, who calls the result fetches it.
    """
    return _flags("updates", one_pass_flags.UPDATES, (weight, delta, rounded))


def _flags(
    what: str, names: tuple[str, ...], arrays: tuple[Array, ...], how: tuple[Any, ...] = ()
) -> Callable[[], dict[str, int]]:
    import cupy

    found, size = _LEDGER.place(cupy, len(names)), arrays[0].size
    source = getattr(one_pass_flags, what)
    kernel = _raw_kernel(f"precsim_{what}", source, _REAL[str(arrays[0].dtype)])
    arguments = (*map(cupy.ascontiguousarray, arrays), *how, np.int64(size), found.there)
    kernel((one_pass_counts.blocks(size),), (grid.THREADS,), arguments)
    return lambda: dict(zip(names, found.read().tolist(), strict=True))


_LEDGER = Ledger()
_REAL = {"float32": "float", "float64": "double"}
_ROUNDING = {
    "float": ("precsim_round_float", one_pass.ROUND_FLOAT),
    "double": ("precsim_round", one_pass.ROUND),
}


def _declared(parameters: str) -> str:
    """Return parameters as CuPy declares them."""
    for c, name in (("double ", "float64 "), ("float ", "float32 "), ("int ", "int32 ")):
        parameters = parameters.replace(c, name)
    return parameters


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
def _raw_kernel(name: str, source: Callable[..., str], *choices: Any) -> Any:
    """Return a kernel of `source(*choices)` that CuPy compiles when it is first called, and keeps."""
    import cupy

    code = f"{grid.DEVICE}{one_pass.TYPES}{source(*choices)}"
    return cupy.RawKernel(code, name, options=one_pass.NO_CONTRACTION)
