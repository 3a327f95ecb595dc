"""Fused kernels: wide inside, rounded once at the output, as frameworks' kernels are.

Each is one op with a backward kernel of its own.  `nn/functional.py` has the same functions spelled
out in primitives; the policy's `granularity` chooses, and in float64 the two must agree.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.dispatch import primitive
from precsim.engine.ops import sum_to

GELU_CUBIC = 0.044715
"""Coefficient of x^3 in the tanh form of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""


@primitive("kernel", vjps=(lambda g, out, x, keep=None: softmax_grad(g, out),))
def softmax(m: Arithmetic, x: Array, keep: Array | None = None) -> Array:
    """Return softmax along the last axis, over the elements where `keep` is true (None: all).

    The maximum is subtracted first, so nothing overflows.  A row without any element to keep, or
    with a NaN or +inf in it, is NaN.
    """
    shown = x if keep is None else m.xp.where(m.xp.asarray(keep), x, -m.xp.inf)
    y = shown - shown.max(axis=-1, keepdims=True)
    m.xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y  # type: ignore[no-any-return]


@primitive("kernel")
def softmax_grad(m: Arithmetic, g: Array, y: Array) -> Array:
    """Return y * (g - sum(g * y)): the gradient of softmax from its output."""
    dot = m.xp.einsum("...i,...i->...", g, y)[..., None]
    z = g - dot
    z *= y
    return z  # type: ignore[no-any-return]


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
    y, _ = _normalised(Arithmetic(m.xp, m.carrier), x, eps)
    y *= weight
    y += bias
    return y


@primitive("kernel")
def layer_norm_grad(m: Arithmetic, g: Array, x: Array, weight: Array, eps: float) -> Array:
    """Return the gradient of layer norm with respect to x."""
    y, scale = _normalised(m, x, eps)
    gy = g * weight
    mean = gy.mean(axis=-1, keepdims=True)
    along = (gy * y).mean(axis=-1, keepdims=True)
    gy -= mean
    y *= along
    gy -= y
    gy *= scale
    return gy


@primitive("reduction")
def layer_norm_weight_grad(m: Arithmetic, g: Array, x: Array, eps: float) -> Array:
    """Return the gradient with respect to the weight: a sum over all rows, in the accumulator."""
    y, _ = _normalised(m, x, eps)
    y *= g
    return m.sum(y.reshape(-1, y.shape[-1]), 0)


def _normalised(m: Arithmetic, x: Array, eps: float) -> tuple[Array, Array]:
    """Return (x - mean) / deviation and 1 / deviation, along the last axis.

    A backward kernel reads both from where the forward kept them (`Arithmetic.keep`).
    """
    mean = x.mean(axis=-1, keepdims=True)
    y = x - mean
    variance = (y * y).mean(axis=-1, keepdims=True)
    scale = m.keep(1 / (variance + eps) ** 0.5)
    if m.accumulator is not None:
        y = x - m.keep(mean)
    y *= scale
    return y, scale


@primitive("kernel", vjps=(lambda g, out, x: gelu_grad(g, x),))
def gelu(m: Arithmetic, x: Array) -> Array:
    """Return x * Phi(x) in its tanh form; -inf gives NaN, as the formula does."""
    y = _gelu_tanh(m.xp, x)
    y += 1
    y *= x
    y *= 0.5
    return y


@primitive("kernel")
def gelu_grad(m: Arithmetic, g: Array, x: Array) -> Array:
    """Return the gradient of GELU, recomputed from x."""
    t = _gelu_tanh(m.xp, x)
    slope = sqrt(2 / pi) * (1 + 3 * GELU_CUBIC * x * x)
    slope *= 1 - t * t
    slope *= x
    t += 1
    t += slope
    t *= 0.5
    t *= g
    return t


def _gelu_tanh(xp: Any, x: Array) -> Array:
    t = xp.multiply(x, x, out=xp.empty_like(x))  # an array in zero dimensions too
    t *= GELU_CUBIC
    t += 1
    t *= x
    t *= sqrt(2 / pi)
    return xp.tanh(t, out=t)  # type: ignore[no-any-return]


@primitive("kernel", vjps=(lambda g, out, x, targets: cross_entropy_grad(g, x, targets=targets),))
def cross_entropy(m: Arithmetic, x: Array, targets: Array) -> Array:
    """Return the mean of -log softmax(x)[target] over all targets >= 0; x is (N, V).

    Negative targets are not counted.  No target at all, or a NaN or +inf in x, gives NaN.
    """
    rows, targets = m.xp.arange(x.shape[0]), m.xp.asarray(targets)
    top = x.max(axis=-1, keepdims=True)
    lse = m.xp.log(m.xp.exp(x - top).sum(axis=-1)) + top[:, 0]
    counted = targets >= 0
    picked = x[rows, m.xp.where(counted, targets, 0)]
    losses = m.xp.where(counted, lse - picked, 0)
    return m.xp.asarray(losses.sum() / counted.sum(), x.dtype)  # type: ignore[no-any-return]


@primitive("kernel")
def cross_entropy_grad(m: Arithmetic, g: Array, x: Array, targets: Array) -> Array:
    """Return (softmax(x) - one_hot(target)) * g / count, zero where a target is not counted."""
    rows, targets = m.xp.arange(x.shape[0]), m.xp.asarray(targets)
    y = x - x.max(axis=-1, keepdims=True)
    m.xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    counted = targets >= 0
    y[rows[counted], targets[counted]] -= 1
    y *= (counted / counted.sum())[:, None] * g
    return y  # type: ignore[no-any-return]


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
