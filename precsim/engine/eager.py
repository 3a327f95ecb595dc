"""The kernels that PyTorch's eager mode has where `kernels.py` has one or none.

Cross-entropy is two there, and what lies between them is rounded; layer norm saves each row's mean
and reciprocal deviation for its backward, and log-softmax keeps each row's sum and its logarithm, in
the format of the input on a CPU (a policy's rule on ops "row_*" says fp32 for CUDA).
`granularity="torch"` chooses these.  Source: PyTorch 2.13, aten/src/ATen/native: LossNLL.cpp,
cpu/layer_norm_kernel.cpp, cpu/SoftMaxKernel.cpp.
"""

from __future__ import annotations

from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.dispatch import primitive
from precsim.engine.ops import sum_to


@primitive("kernel")
def row_exp_sum(m: Arithmetic, x: Array) -> Array:
    """Return the sum of e^(x - max) along the last axis, which stays with one element."""
    return m.xp.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


@primitive("kernel")
def row_log(m: Arithmetic, x: Array) -> Array:
    """Return the natural logarithm of such a sum."""
    return m.xp.log(x)  # type: ignore[no-any-return]


@primitive("kernel", vjps=(lambda g, out, x, log_sum: log_softmax_grad(g, out),))
def log_softmax(m: Arithmetic, x: Array, log_sum: Array) -> Array:
    """Return the logarithm of softmax along the last axis; a NaN or +inf makes its row NaN.

    `log_sum` is the logarithm of the sum of e^(x - max).
    """
    return x - x.max(axis=-1, keepdims=True) - log_sum  # type: ignore[no-any-return]


@primitive("kernel")
def log_softmax_grad(m: Arithmetic, g: Array, y: Array) -> Array:
    """Return g - exp(y) * sum(g): the gradient of `log_softmax` from its (rounded) output."""
    return g - m.xp.exp(y) * g.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


@primitive(
    "reduction",
    vjps=(lambda g, out, x, targets: nll_loss_grad(g, targets=targets, vocabulary=x.shape[-1]),),
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
def nll_loss_grad(m: Arithmetic, g: Array, targets: Array, vocabulary: int) -> Array:
    """Return -g / count at each counted target, zero elsewhere."""
    rows, targets = m.xp.arange(targets.shape[0]), m.xp.asarray(targets)
    counted = targets >= 0
    y = m.xp.zeros((targets.shape[0], vocabulary), g.dtype)
    y[rows[counted], targets[counted]] = -g / counted.sum()
    return y  # type: ignore[no-any-return]


@primitive("kernel")
def row_mean(m: Arithmetic, x: Array) -> Array:
    """Return the mean along the last axis, which stays with one element."""
    return _statistics(x, 0.0)[0]


@primitive("kernel")
def row_rstd(m: Arithmetic, x: Array, eps: float) -> Array:
    """Return 1 / sqrt(variance + eps) along the last axis, which stays with one element."""
    return _statistics(x, eps)[1]


def _statistics(x: Array, eps: float) -> tuple[Array, Array]:
    """Return mean and reciprocal deviation (biased variance) along the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return mean, 1 / (variance + eps) ** 0.5


@primitive(
    "kernel",
    vjps=(
        lambda g, out, x, weight, bias, mean, rstd, eps: native_layer_norm_grad(
            g, x, weight, mean, rstd
        ),
        lambda g, out, x, weight, bias, mean, rstd, eps: native_layer_norm_weight_grad(
            g, x, mean, rstd
        ),
        lambda g, out, x, weight, bias, mean, rstd, eps: sum_to(g, shape=bias.shape),
    ),
)
def native_layer_norm(
    m: Arithmetic, x: Array, weight: Array, bias: Array, mean: Array, rstd: Array, eps: float
) -> Array:
    """Return layer norm as `layer_norm` does; `mean` and `rstd` are what the backward reads.

    The forward itself uses its own, not yet rounded.  A constant row gives `bias` (for eps > 0).
    """
    own_mean, own_rstd = _statistics(x, eps)
    return (x - own_mean) * own_rstd * weight + bias


@primitive("kernel")
def native_layer_norm_grad(
    m: Arithmetic, g: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> Array:
    """Return the gradient with respect to x, from the saved statistics."""
    y = (x - mean) * rstd
    gy = g * weight
    along = (gy * y).mean(axis=-1, keepdims=True)
    return (gy - gy.mean(axis=-1, keepdims=True) - y * along) * rstd  # type: ignore[no-any-return]


@primitive("reduction")
def native_layer_norm_weight_grad(
    m: Arithmetic, g: Array, x: Array, mean: Array, rstd: Array
) -> Array:
    """Return the gradient with respect to the weight: a sum over all rows, in the accumulator."""
    y = (x - mean) * rstd * g
    return m.sum(y.reshape(-1, y.shape[-1]), 0)
