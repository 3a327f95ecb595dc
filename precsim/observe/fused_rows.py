"""The ops that go over rows, once more in float64, and compared: compiled, a row at a time.

In NumPy a kernel passes a dozen times over arrays twice as large as the run's; here each row is
widened, computed and compared while it is in a first-level cache, and nothing is written to memory.
What each op does is said where it is defined (`precsim.engine.kernels`, `precsim.engine.ops`); the
tests hold these loops to that.  An op that has none here is run as it is defined.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from precsim.backend.fused import compiled
from precsim.backend.fused_bits import part, summing
from precsim.backend.fused_errors import Sums, compare, sums
from precsim.engine.kernels import GELU_CUBIC
from precsim.formats.arrays import Array

PIECE = 1 << 14
"""Elements whose tanh is computed at a time."""
SLOPE = sqrt(2 / pi)


def compute_and_compare(
    op: str, inputs: tuple[Array, ...], params: dict[str, Any], rounded: Array
) -> Sums | None:
    """Compare a result with the op on these operands in float64; None: there is no loop for it."""
    run = OPS.get(op)
    if run is None or not all(x.flags.c_contiguous for x in (*inputs, rounded)) or not rounded.size:
        return None
    return run(*inputs, rounded, **params)


def _rows(*arrays: Array) -> list[Array]:
    return [x.reshape(-1, x.shape[-1]) for x in arrays]


def _softmax(x: Array, rounded: Array, keep: Array | None = None) -> Sums | None:
    if x.ndim == 0:
        return None
    keep = np.ones(x.shape[-1:], bool) if keep is None else np.asarray(keep)
    if keep.dtype != bool or keep.shape != x.shape[x.ndim - max(keep.ndim, 1) :]:
        return None
    x, rounded, keep = _rows(x, rounded, keep)  # row i of x has row i of `keep`, again and again
    error = square = 0.0
    step = max(1, PIECE // x.shape[1])
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        room = np.empty(x[part].shape)
        _softmax_arguments(x[part], keep, start, room)
        np.exp(room, out=room)
        found = _softmaxes(room, keep, start, rounded[part])
        error, square = error + found[0], square + found[1]
    return error, square


def _softmax_grad(g: Array, y: Array, rounded: Array) -> Sums | None:
    if g.shape != y.shape or g.ndim == 0:
        return None
    found: Sums = _softmax_grads(*_rows(g, y, rounded))
    return found


def _layer_norm(x: Array, weight: Array, bias: Array, rounded: Array, eps: float) -> Sums | None:
    if not weight.shape == bias.shape == x.shape[-1:]:
        return None
    x, rounded = _rows(x, rounded)
    found: Sums = _layer_norms(x, weight, bias, eps, rounded)
    return found


def _layer_norm_grad(g: Array, x: Array, weight: Array, rounded: Array, eps: float) -> Sums | None:
    if g.shape != x.shape or weight.shape != x.shape[-1:]:
        return None
    g, x, rounded = _rows(g, x, rounded)
    found: Sums = _layer_norm_grads(g, x, weight, eps, rounded)
    return found


def _layer_norm_weight_grad(g: Array, x: Array, rounded: Array, eps: float) -> Sums | None:
    if g.shape != x.shape:
        return None
    return compare(rounded, _layer_norm_weight_grads(*_rows(g, x), eps))


def _sum_to(x: Array, rounded: Array, shape: tuple[int, ...]) -> Sums | None:
    if x.ndim == 0 or rounded.shape[-1:] != x.shape[-1:] or rounded.size != x.shape[-1]:
        return None  # not all axes but the last are summed
    return compare(rounded.reshape(-1), _column_sums(*_rows(x)))


def _gelu(x: Array, rounded: Array) -> Sums | None:
    return _in_pieces(_gelus, (x, rounded))


def _gelu_grad(g: Array, x: Array, rounded: Array) -> Sums | None:
    return _in_pieces(_gelu_grads, (x, g, rounded)) if g.shape == x.shape else None


def _in_pieces(loop: Callable[..., Sums], arrays: tuple[Array, ...]) -> Sums:
    """Run a loop that needs the tanh of GELU of the first array, which NumPy is quickest at."""
    flat = [x.reshape(-1) for x in arrays]
    size, error, square = flat[0].size, 0.0, 0.0
    room = np.empty(min(PIECE, size))
    for start in range(0, size, PIECE):
        parts = [x[start : start + PIECE] for x in flat]
        t = room[: parts[0].size]
        _gelu_arguments(parts[0], t)
        np.tanh(t, out=t)
        found = loop(t, *parts)
        error, square = error + found[0], square + found[1]
    return error, square


OPS: dict[str, Callable[..., Sums | None]] = {
    "gelu": _gelu,
    "gelu_grad": _gelu_grad,
    "layer_norm": _layer_norm,
    "layer_norm_grad": _layer_norm_grad,
    "layer_norm_weight_grad": _layer_norm_weight_grad,
    "softmax": _softmax,
    "softmax_grad": _softmax_grad,
    "sum_to": _sum_to,
}


@summing
def _total(x: Any) -> Any:
    total = 0.0
    for i in range(x.size):
        total += x[i]
    return total


@summing
def _product(a: Any, b: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@part
def _widen(x: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = np.float64(x[i])


@part
def _normalise(x: Any, eps: Any, out: Any) -> Any:
    """Write (x - mean) / deviation, and return 1 / deviation."""
    _widen(x, out)
    mean = _total(out) / out.size
    for i in range(out.size):
        out[i] -= mean
    scale = 1 / np.sqrt(_product(out, out) / out.size + eps)
    for i in range(out.size):
        out[i] *= scale
    return scale


@compiled
def _softmax_arguments(x: Any, keep: Any, first: Any, out: Any) -> None:
    """Write x - the largest of its row; of what is hidden any number, whose exp is as quick."""
    for row in range(x.shape[0]):
        shown = keep[(first + row) % keep.shape[0]]
        top = -np.inf
        for i in range(x.shape[1]):
            top = max(top, np.float64(x[row, i]) if shown[i] else -np.inf)
        for i in range(x.shape[1]):
            out[row, i] = np.float64(x[row, i]) - top if shown[i] else 0.0


@compiled
def _softmaxes(powers: Any, keep: Any, first: Any, rounded: Any) -> Any:
    error = square = 0.0
    for row in range(powers.shape[0]):
        shown, truth = keep[(first + row) % keep.shape[0]], powers[row]
        for i in range(truth.size):
            truth[i] = truth[i] if shown[i] else 0.0
        total = _total(truth)
        for i in range(truth.size):
            truth[i] /= total
        found = sums(rounded[row], truth)
        error += found[0]
        square += found[1]
    return error, square


@compiled
def _softmax_grads(g: Any, y: Any, rounded: Any) -> Any:
    error = square = 0.0
    truth, share = np.empty(g.shape[1]), np.empty(g.shape[1])
    for row in range(g.shape[0]):
        _widen(g[row], truth)
        _widen(y[row], share)
        mean = _product(truth, share)
        for i in range(truth.size):
            truth[i] = (truth[i] - mean) * share[i]
        found = sums(rounded[row], truth)
        error += found[0]
        square += found[1]
    return error, square


@compiled
def _layer_norms(x: Any, weight: Any, bias: Any, eps: Any, rounded: Any) -> Any:
    error = square = 0.0
    truth = np.empty(x.shape[1])
    for row in range(x.shape[0]):
        _normalise(x[row], eps, truth)
        for i in range(truth.size):
            truth[i] = truth[i] * np.float64(weight[i]) + np.float64(bias[i])
        found = sums(rounded[row], truth)
        error += found[0]
        square += found[1]
    return error, square


@compiled
def _layer_norm_grads(g: Any, x: Any, weight: Any, eps: Any, rounded: Any) -> Any:
    error = square = 0.0
    truth, y = np.empty(x.shape[1]), np.empty(x.shape[1])
    for row in range(x.shape[0]):
        scale = _normalise(x[row], eps, y)
        for i in range(truth.size):
            truth[i] = np.float64(g[row, i]) * np.float64(weight[i])
        mean = _total(truth) / truth.size
        slope = _product(truth, y) / truth.size
        for i in range(truth.size):
            truth[i] = (truth[i] - mean - y[i] * slope) * scale
        found = sums(rounded[row], truth)
        error += found[0]
        square += found[1]
    return error, square


@compiled
def _layer_norm_weight_grads(g: Any, x: Any, eps: Any) -> Any:
    total, y = np.zeros(x.shape[1]), np.empty(x.shape[1])
    for row in range(x.shape[0]):
        _normalise(x[row], eps, y)
        for i in range(y.size):
            total[i] += y[i] * np.float64(g[row, i])
    return total


@compiled
def _column_sums(x: Any) -> Any:
    total = np.zeros(x.shape[1])
    for row in range(x.shape[0]):
        for i in range(total.size):
            total[i] += np.float64(x[row, i])
    return total


@compiled
def _gelu_arguments(x: Any, out: Any) -> None:
    for i in range(out.size):
        v = np.float64(x[i])
        out[i] = (v * v * GELU_CUBIC + 1) * v * SLOPE


@compiled
def _gelus(t: Any, x: Any, rounded: Any) -> Any:
    for i in range(t.size):
        t[i] = (t[i] + 1) * np.float64(x[i]) * 0.5
    return sums(rounded, t)


@compiled
def _gelu_grads(t: Any, x: Any, g: Any, rounded: Any) -> Any:
    for i in range(t.size):
        v = np.float64(x[i])
        slope = (v * v * (3 * GELU_CUBIC) + 1) * SLOPE * (1 - t[i] * t[i]) * v
        t[i] = (t[i] + 1 + slope) * 0.5 * np.float64(g[i])
    return sums(rounded, t)
