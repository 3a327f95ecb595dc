"""Softmax, layer norm, GELU and cross-entropy at the granularity that the policy asks for.

"kernel" calls the fused op, wide inside and rounded once.  "primitive" writes the formula out, one
rounding per step; that is what a framework without fused kernels would do, and what a textbook
shows.  "torch" is "kernel" with cross-entropy in two kernels, as PyTorch runs it.  In float64 all
are the same function.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.engine import kernels, ops
from precsim.engine.context import current
from precsim.engine.policy import Granularity
from precsim.engine.tensor import Tensor
from precsim.formats.arrays import array_module

Index = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]


def _fused() -> bool:
    return current().policy.granularity is not Granularity.PRIMITIVE


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight + bias; x is (..., C), weight (C, D), bias (D)."""
    if bias is None:
        return ops.matmul(x, weight)
    if _fused():
        return ops.linear(x, weight, bias)
    return ops.matmul(x, weight) + bias


def softmax(x: Tensor, keep: Mask | None = None) -> Tensor:
    """Return softmax along the last axis over the elements where `keep` is true (None: all).

    Rows with nothing to keep, with a NaN or with +inf are NaN.
    """
    if _fused():
        return kernels.softmax(x, keep=keep)
    z = x - ops.amax(x, axis=-1, keep=keep)
    if keep is not None:  # what is hidden may exceed the maximum, and exp of it overflow
        z = ops.mask(z, keep=keep)
    e = ops.exp(z)
    if keep is not None:
        e = ops.mask(e, keep=keep)
    return e / e.sum(-1, keepdims=True)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift.

    In primitive granularity eps is rounded into the format: 1e-8 is 0 in fp16, and a constant row
    becomes NaN.
    """
    if _fused():
        return kernels.layer_norm(x, weight, bias, eps=eps)
    per_element = 1.0 / x.shape[-1]
    centred = x - x.sum(-1, keepdims=True) * per_element
    variance = ops.square(centred).sum(-1, keepdims=True) * per_element
    return centred / ops.sqrt(variance + eps) * weight + bias


def gelu(x: Tensor) -> Tensor:
    """Return GELU in its tanh form; in primitive granularity x^3 overflows fp16 from 40.3."""
    if _fused():
        return kernels.gelu(x)
    cubic = ops.square(x) * x * kernels.GELU_CUBIC
    return (ops.tanh((x + cubic) * sqrt(2 / pi)) + 1.0) * x * 0.5


def cross_entropy(logits: Tensor, targets: Index) -> Tensor:
    """Return the mean of -log softmax(logits)[target] over targets >= 0.

    logits (..., V), targets of the leading shape; negative targets are not counted, and where all
    are negative the loss is NaN.  Raises `ValueError` for targets that are not integers, of a shape
    that does not fit, or beyond the vocabulary.
    """
    vocabulary, targets = logits.shape[-1], as_index(targets, "targets")
    if targets.shape != logits.shape[:-1]:
        msg = f"cross_entropy: expected targets of shape {logits.shape[:-1]}; got {targets.shape}"
        raise ValueError(msg)
    if targets.size and int(targets.max()) >= vocabulary:
        msg = f"cross_entropy: target {int(targets.max())} is not in the vocabulary of {vocabulary}"
        raise ValueError(msg)
    x, flat = logits.reshape(-1, vocabulary), targets.reshape(-1)
    if current().policy.granularity is Granularity.TORCH:
        return kernels.nll_loss(kernels.log_softmax(x), targets=flat)
    if _fused():
        return kernels.cross_entropy(x, targets=flat)
    z = x - ops.amax(x, axis=-1)
    picked = ops.mask(z, keep=flat[:, None] == np.arange(vocabulary)).sum(-1)
    counted = flat >= 0
    losses = ops.mask(ops.log(ops.exp(z).sum(-1)) - picked, keep=counted)
    count = int(counted.sum())
    return losses.sum() * (1 / count if count else float("nan"))


def as_index(values: Any, what: str) -> Index:
    """Return an array of integers as it is, and a list as one; raise `ValueError` for others."""
    array: Any = array_module(values).asarray(values)
    if array.dtype.kind not in "iu":
        msg = f"{what}: expected integers; got {array.dtype} of shape {array.shape}"
        raise ValueError(msg)
    return array  # type: ignore[no-any-return]
