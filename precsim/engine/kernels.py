"""Fused kernels: wide inside, rounded once at the output, as frameworks' kernels are.

Each is one op with a backward kernel of its own.  `nn/functional.py` has the same functions spelled
out in primitives; the policy's `granularity` chooses, and in float64 the two must agree.

A kernel passes over its rows several times, so it takes few enough at a time to stay in a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import pi, sqrt
from typing import Any

import numpy as np

from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.dispatch import primitive
from precsim.engine.ops import sum_to

GELU_CUBIC = 0.044715
"""Coefficient of x^3 in the tanh form of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""


BLOCK_BYTES = 1 << 18
"""Bytes of an array that a kernel works on at a time."""


def _parts(x: Array) -> Iterator[slice]:
    """Cut the first axis of (N,) or (N, C) into parts of about `BLOCK_BYTES`."""
    step = max(1, BLOCK_BYTES // (x.itemsize * (x.shape[1] if x.ndim == 2 else 1)))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _as_rows(*arrays: Array) -> list[Array]:
    """Return arrays as (N, C), C the last axis; views of contiguous ones."""
    return [x.reshape(-1, x.shape[-1]) for x in arrays]


def _largest(xp: Any, rows: Array) -> Array:
    """Return the maximum of each row (N, 1), of one with a NaN that or any other of its values.

    Along a short axis NumPy is slow at floats.  Read as integers, floats without a sign are in
    order, and those with one in the opposite order below them.
    """
    if xp is not np or rows.size == 0:
        return rows.max(axis=-1, keepdims=True)  # type: ignore[no-any-return]
    signed: Any = np.int32 if rows.dtype == np.float32 else np.int64
    bits, starts = rows.reshape(-1).view(signed), np.arange(0, rows.size, rows.shape[1])
    largest = np.maximum.reduceat(bits, starts)
    if largest.min() < 0:
        np.copyto(largest, np.minimum.reduceat(bits, starts), where=largest < 0)
    return largest.view(rows.dtype)[:, None]


def _sums(xp: Any, rows: Array) -> Array:
    """Return the sum of each row (N, 1), which BLAS is quickest at; never -0."""
    return rows @ xp.ones((rows.shape[1], 1), rows.dtype)  # type: ignore[no-any-return]


def _products(xp: Any, a: Array, b: Array) -> Array:
    """Return the scalar product of each row of a with that of b (N, 1)."""
    return xp.einsum("ij,ij->i", a, b)[:, None]  # type: ignore[no-any-return]


def _exponentials(xp: Any, x: Array, out: Array) -> tuple[Array, Array]:
    """Write e^(x - largest of its row), in which nothing overflows.

    Return the rows' sums (N, 1) and their largest (N, 1).
    """
    largest = _largest(xp, x)
    xp.subtract(x, largest, out=out)
    xp.exp(out, out=out)
    return _sums(xp, out), largest


@primitive("kernel", vjps=(lambda g, out, x, keep=None: softmax_grad(g, out),))
def softmax(m: Arithmetic, x: Array, keep: Array | None = None) -> Array:
    """Return softmax along the last axis, over the elements where `keep` is true (None: all).

    The maximum is subtracted first, so nothing overflows.  A row without any element to keep, or
    with a NaN or +inf in it, is NaN.
    """
    out = m.like(x)
    for shown, y in _shown(m.xp, x, out, keep):
        total, _ = _exponentials(m.xp, shown, y)
        y /= total
    return out


def _shown(xp: Any, x: Array, out: Array, keep: Array | None) -> Iterator[tuple[Array, Array]]:
    """Cut x and `out` into parts of their rows (N, C); where there is `keep`, x is in `out` already.

    What is hidden becomes -inf, a NaN too; a NaN that is shown +inf, whose row is NaN as well.
    """
    rows, y = _as_rows(x, out)
    if keep is None:
        yield from ((rows[part], y[part]) for part in _parts(y))
        return
    limit = xp.where(xp.asarray(keep), xp.inf, -xp.inf).astype(x.dtype)
    limit = xp.broadcast_to(limit, x.shape[x.ndim - max(limit.ndim, 1) :])
    stacks = x.reshape(-1, *limit.shape), out.reshape(-1, *limit.shape)  # of what `keep` tells of
    for part in _parts(stacks[0].reshape(len(stacks[0]), limit.size)):
        here, there = (stack[part] for stack in stacks)
        xp.fmin(here, limit, out=there)
        shown = there.reshape(-1, x.shape[-1])
        yield shown, shown


@primitive("kernel")
def softmax_grad(m: Arithmetic, g: Array, y: Array) -> Array:
    """Return y * (g - sum(g * y)): the gradient of softmax from its output."""
    out = m.like(y)
    g, y, z = _as_rows(g, y, out)
    for part in _parts(y):
        m.xp.subtract(g[part], _products(m.xp, g[part], y[part]), out=z[part])
        z[part] *= y[part]
    return out


@primitive(
    "kernel",
    vjps=(
        lambda g, out, x, weight, bias, eps: layer_norm_grad(g, x, weight, eps=eps),
        lambda g, out, x, weight, bias, eps: layer_norm_weight_grad(g, x, eps=eps),
        lambda g, out, x, weight, bias, eps: sum_to(g, shape=bias.shape),
    ),
)
def layer_norm(m: Arithmetic, x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Normalise the last axis to mean 0 and variance 1, times `weight`, plus `bias`.

    A constant row gives `bias` (for eps > 0).  Ba et al. 2016, arXiv:1607.06450; biased variance.
    """
    out = m.like(x)
    wide = Arithmetic(m.xp, m.carrier)
    x, y = _as_rows(x, out)
    for part in _parts(x):
        _normalise(wide, x[part], eps, y[part])
        y[part] *= weight
        y[part] += bias
    return out


@primitive("kernel")
def layer_norm_grad(m: Arithmetic, g: Array, x: Array, weight: Array, eps: float) -> Array:
    """Return the gradient of layer norm with respect to x."""
    out = m.like(x)
    g, x, z = _as_rows(g, x, out)
    for part in _parts(x):
        y, gy = m.empty(x[part].shape), z[part]
        scale = _normalise(m, x[part], eps, y)
        m.xp.multiply(g[part], weight, out=gy)
        mean = gy.mean(axis=1, keepdims=True)
        y *= _products(m.xp, gy, y) / gy.shape[1]
        gy -= mean
        gy -= y
        gy *= scale
    return out


@primitive("reduction")
def layer_norm_weight_grad(m: Arithmetic, g: Array, x: Array, eps: float) -> Array:
    """Return the gradient with respect to the weight: a sum over all rows, in the accumulator."""
    g, x = _as_rows(g, x)
    y = m.like(x)
    for part in _parts(x):
        _normalise(m, x[part], eps, y[part])
        y[part] *= g[part]
    return m.sum(y, 0)


def _normalise(m: Arithmetic, x: Array, eps: float, out: Array) -> Array:
    """Write (x - mean) / deviation of each row of (N, C), and return 1 / deviation (N, 1).

    A backward kernel reads both from where the forward kept them (`Arithmetic.keep`).
    """
    columns = x.shape[1]
    mean = _sums(m.xp, x) / columns
    m.xp.subtract(x, mean, out=out)
    scale = m.keep(1 / (_products(m.xp, out, out) / columns + eps) ** 0.5)
    if m.accumulator is not None:
        m.xp.subtract(x, m.keep(mean), out=out)
    out *= scale
    return scale


@primitive("kernel", vjps=(lambda g, out, x: gelu_grad(g, x),))
def gelu(m: Arithmetic, x: Array) -> Array:
    """Return x * Phi(x) in its tanh form; -inf gives NaN, as the formula does."""
    out = m.like(x)
    x, y = x.reshape(-1), out.reshape(-1)
    for part in _parts(x):
        t = _gelu_tanh(m.xp, x[part], y[part])
        t += 1
        t *= x[part]
        t *= 0.5
    return out


@primitive("kernel")
def gelu_grad(m: Arithmetic, g: Array, x: Array) -> Array:
    """Return the gradient of GELU, recomputed from x."""
    out = m.like(x)
    g, x, y = (a.reshape(-1) for a in (g, x, out))
    for part in _parts(x):
        t = _gelu_tanh(m.xp, x[part], y[part])
        slope, rest = m.empty(t.shape), m.empty(t.shape)
        m.xp.multiply(x[part], 3 * GELU_CUBIC, out=slope)
        slope *= x[part]
        slope += 1
        slope *= sqrt(2 / pi)
        m.xp.multiply(t, t, out=rest)
        m.xp.subtract(1, rest, out=rest)
        slope *= rest
        slope *= x[part]
        t += 1
        t += slope
        t *= 0.5
        t *= g[part]
    return out


def _gelu_tanh(xp: Any, x: Array, out: Array) -> Array:
    xp.multiply(x, x, out=out)
    out *= GELU_CUBIC
    out += 1
    out *= x
    out *= sqrt(2 / pi)
    return xp.tanh(out, out=out)  # type: ignore[no-any-return]


@primitive("kernel", vjps=(lambda g, out, x, targets: cross_entropy_grad(g, x, targets=targets),))
def cross_entropy(m: Arithmetic, x: Array, targets: Array) -> Array:
    """Return the mean of -log softmax(x)[target] over all targets >= 0; x is (N, V).

    Negative targets are not counted.  No target at all, or a NaN or +inf in x, gives NaN.
    """
    xp = m.xp
    rows, targets = xp.arange(x.shape[0]), xp.asarray(targets)
    lse = xp.empty(x.shape[0], x.dtype)
    for part in _parts(x):
        total, largest = _exponentials(xp, x[part], m.empty(x[part].shape))
        lse[part] = (xp.log(total) + largest)[:, 0]
    counted = targets >= 0
    picked = x[rows, xp.where(counted, targets, 0)]
    losses = xp.where(counted, lse - picked, 0)
    return xp.asarray(losses.sum() / counted.sum(), x.dtype)  # type: ignore[no-any-return]


@primitive("kernel")
def cross_entropy_grad(m: Arithmetic, g: Array, x: Array, targets: Array) -> Array:
    """Return (softmax(x) - one_hot(target)) * g / count, zero where a target is not counted."""
    xp, out = m.xp, m.like(x)
    rows, targets = xp.arange(x.shape[0]), xp.asarray(targets)
    for part in _parts(x):
        total, _ = _exponentials(xp, x[part], out[part])
        out[part] /= total
    counted = targets >= 0
    out[rows[counted], targets[counted]] -= 1
    out *= xp.asarray((counted / counted.sum())[:, None] * g, x.dtype)
    return out


# Cross-entropy as two kernels, the way PyTorch runs it: what lies between them is rounded.


@primitive("kernel", vjps=(lambda g, out, x: log_softmax_grad(g, out),))
def log_softmax(m: Arithmetic, x: Array) -> Array:
    """Return the logarithm of softmax along the last axis; a NaN or +inf makes its row NaN.

    Each row's sum and its logarithm are kept in the accumulator's format, if there is one, as
    PyTorch 2.13 keeps them in the input's on a CPU (aten/src/ATen/native/cpu/SoftMaxKernel.cpp).
    """
    y = x - x.max(axis=-1, keepdims=True)
    total = m.keep(m.xp.exp(y).sum(axis=-1, keepdims=True))
    y -= m.keep(m.xp.log(total))
    return y  # type: ignore[no-any-return]


@primitive("kernel")
def log_softmax_grad(m: Arithmetic, g: Array, y: Array) -> Array:
    """Return g - exp(y) * sum(g): the gradient of `log_softmax` from its (rounded) output."""
    return g - m.xp.exp(y) * g.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


@primitive(
    "reduction",
    vjps=(lambda g, out, x, targets: nll_loss_grad(g, targets=targets, classes=x.shape[-1]),),
)
def nll_loss(m: Arithmetic, x: Array, targets: Array) -> Array:
    """Return the mean of -x[target] over all targets >= 0; x is (N, V), log-probabilities.

    Negative targets are not counted; no target at all gives NaN.
    """
    rows, targets = m.xp.arange(x.shape[0]), m.xp.asarray(targets)
    counted = targets >= 0
    picked = m.xp.where(counted, x[rows, m.xp.where(counted, targets, 0)], 0)
    return m.xp.asarray(-m.sum(picked, 0) / counted.sum(), x.dtype)  # type: ignore[no-any-return]


@primitive()
def nll_loss_grad(m: Arithmetic, g: Array, targets: Array, classes: int) -> Array:
    """Return -g / count at each counted target of (N, classes), zero elsewhere."""
    rows, targets = m.xp.arange(targets.shape[0]), m.xp.asarray(targets)
    counted = targets >= 0
    y = m.xp.zeros((targets.shape[0], classes), g.dtype)
    y[rows[counted], targets[counted]] = -g / counted.sum()
    return y  # type: ignore[no-any-return]
