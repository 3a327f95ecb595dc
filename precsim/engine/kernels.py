"""Fused kernels: wide inside, rounded once at the output, as frameworks' kernels are.

Each is one op with a backward kernel of its own.  `nn/functional.py` has the same functions spelled
out in primitives; the policy's `granularity` chooses, and in float64 the two must agree.

A kernel passes over its rows several times, so it takes few enough at a time to stay in a cache.
What it does element by element is a `formula`, a single pass where Numba is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import pi, sqrt
from typing import Any

import numpy as np

from precsim.backend.formula import formula
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


@formula
def _difference(x: Any, y: Any) -> Any:
    return x - y


@formula
def _quotient(x: Any, y: Any) -> Any:
    return x / y


def _exponentials(xp: Any, x: Array, out: Array) -> tuple[Array, Array]:
    """Write e^(x - largest of its row), in which nothing overflows.

    Return the rows' sums (N, 1) and their largest (N, 1).
    """
    largest = _largest(xp, x)
    _difference(x, largest, out=out)
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
        _quotient(y, total, out=y)
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
        slope = _products(m.xp, g[part], y[part])
        _softmax_slope(g[part], slope, y[part], out=z[part])
    return out


@formula
def _softmax_slope(g: Any, slope: Any, y: Any) -> Any:
    return (g - slope) * y


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
        here = y[part]
        scale = _centred(wide, x[part], eps, here)
        _stretched(here, scale, weight, bias, out=here)
    return out


@formula
def _stretched(centred: Any, scale: Any, weight: Any, bias: Any) -> Any:
    return centred * scale * weight + bias


@formula
def _product(x: Any, y: Any) -> Any:
    return x * y


@primitive("kernel")
def layer_norm_grad(m: Arithmetic, g: Array, x: Array, weight: Array, eps: float) -> Array:
    """Return the gradient of layer norm with respect to x."""
    out = m.like(x)
    g, x, z = _as_rows(g, x, out)
    for part in _parts(x):
        y, gy = m.empty(x[part].shape), z[part]
        scale = _centred(m, x[part], eps, y)
        _product(y, scale, out=y)
        _product(g[part], weight, out=gy)
        mean = _sums(m.xp, gy) / gy.shape[1]
        slope = _products(m.xp, gy, y) / gy.shape[1]
        _layer_norm_slope(gy, mean, y, slope, scale, out=gy)
    return out


@formula
def _layer_norm_slope(gy: Any, mean: Any, y: Any, slope: Any, scale: Any) -> Any:
    return (gy - mean - y * slope) * scale


@primitive("reduction")
def layer_norm_weight_grad(m: Arithmetic, g: Array, x: Array, eps: float) -> Array:
    """Return the gradient with respect to the weight: a sum over all rows, in the accumulator."""
    g, x = _as_rows(g, x)
    y = m.like(x)
    for part in _parts(x):
        here = y[part]
        scale = _centred(m, x[part], eps, here)
        _weighted(here, scale, g[part], out=here)
    return m.sum(y, 0)


@formula
def _weighted(centred: Any, scale: Any, g: Any) -> Any:
    return centred * scale * g


def _centred(m: Arithmetic, x: Array, eps: float, out: Array) -> Array:
    """Write x - mean of each row of (N, C), and return 1 / deviation (N, 1).

    A backward kernel reads both from where the forward kept them (`Arithmetic.keep`).
    """
    columns = x.shape[1]
    mean = _sums(m.xp, x) / columns
    _difference(x, mean, out=out)
    scale = m.keep(1 / (_products(m.xp, out, out) / columns + eps) ** 0.5)
    if m.accumulator is not None:
        _difference(x, m.keep(mean), out=out)
    return scale


@primitive("kernel", vjps=(lambda g, out, x: gelu_grad(g, x),))
def gelu(m: Arithmetic, x: Array) -> Array:
    """Return x * Phi(x) in its tanh form; -inf gives NaN, as the formula does."""
    out = m.like(x)
    x, y = x.reshape(-1), out.reshape(-1)
    for part in _parts(x):
        t = _gelu_tanh(m.xp, x[part], y[part])
        _gelu_of(t, x[part], out=t)
    return out


@primitive("kernel")
def gelu_grad(m: Arithmetic, g: Array, x: Array) -> Array:
    """Return the gradient of GELU, recomputed from x."""
    out = m.like(x)
    g, x, y = (a.reshape(-1) for a in (g, x, out))
    for part in _parts(x):
        t = _gelu_tanh(m.xp, x[part], y[part])
        _gelu_slope(t, x[part], g[part], out=t)
    return out


def _gelu_tanh(xp: Any, x: Array, out: Array) -> Array:
    return xp.tanh(_gelu_argument(x, out=out), out=out)  # type: ignore[no-any-return]


@formula
def _gelu_argument(x: Any) -> Any:
    return (x * x * GELU_CUBIC + 1) * x * sqrt(2 / pi)


@formula
def _gelu_of(t: Any, x: Any) -> Any:
    return (t + 1) * x * 0.5


@formula
def _gelu_slope(t: Any, x: Any, g: Any) -> Any:
    inner = (x * (3 * GELU_CUBIC) * x + 1) * sqrt(2 / pi) * (1 - t * t) * x
    return (t + 1 + inner) * 0.5 * g


@primitive("kernel", vjps=(lambda g, out, x, targets: cross_entropy_grad(g, x, targets=targets),))
def cross_entropy(m: Arithmetic, x: Array, targets: Array) -> Array:
    """Return the mean of -log softmax(x)[target] over all targets >= 0; x is (N, V).

    Negative targets are not counted, nor what is in their rows.  No target at all, or a NaN or
    +inf in another row, gives NaN.
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
    """Return (softmax(x) - one_hot(target)) * g / count.

    In rows whose target is not counted it is 0, or, with a NaN or +inf in x, NaN, as in PyTorch.
    """
    xp, out = m.xp, m.like(x)
    rows, targets = xp.arange(x.shape[0]), xp.asarray(targets)
    for part in _parts(x):
        here = out[part]
        total, _ = _exponentials(xp, x[part], here)
        _quotient(here, total, out=here)
    counted = targets >= 0
    out[rows[counted], targets[counted]] -= 1
    share = xp.asarray((counted / counted.sum())[:, None] * g, x.dtype)
    return _product(out, share, out=out)


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
