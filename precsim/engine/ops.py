"""The primitive ops: each one statement, its forward and its backward rules together.

A backward rule is ``lambda g, out, *operands, **params`` and is written in these same ops, so its
arithmetic is rounded and observed like any other.  Broadcasting is undone by the tape (`sum_to`).
Fused kernels (softmax, layer norm, GELU, cross-entropy) are in `kernels.py`.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from math import sqrt as square_root
from numbers import Integral
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from precsim.backend.formula import formula
from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.dispatch import primitive
from precsim.engine.tape import Part
from precsim.engine.tensor import Tensor
from precsim.formats.arrays import array_module

# Movement: values change places, none is rounded.


@primitive("movement", vjps=(lambda g, out, x, shape: reshape(g, shape=x.shape),))
def reshape(m: Arithmetic, x: Array, shape: tuple[int, ...]) -> Array:
    """Return the values in another shape; raise `ValueError` if the sizes differ."""
    if m.xp is np and not x.flags.c_contiguous:
        try:
            return np.reshape(x, shape, copy=False)
        except ValueError:  # the values do not lie in that order
            ordered = m.like(x)
            ordered[...] = x
            return ordered.reshape(shape)
    return x.reshape(shape)


@primitive(
    "movement", vjps=(lambda g, out, x, first, second: swapaxes(g, first=first, second=second),)
)
def swapaxes(m: Arithmetic, x: Array, first: int, second: int) -> Array:
    """Return the tensor with two axes exchanged."""
    return x.swapaxes(first, second)


@primitive("movement", vjps=(lambda g, out, x, shape: sum_to(g, shape=x.shape),))
def broadcast_to(m: Arithmetic, x: Array, shape: tuple[int, ...]) -> Array:
    """Repeat the values along new or one-element axes."""
    return m.xp.broadcast_to(x, shape)  # type: ignore[no-any-return]


@primitive("movement", vjps=(lambda g, out, x, index: unslice(g, index=index, shape=x.shape),))
def slice_(m: Arithmetic, x: Array, index: Any) -> Array:
    """Return ``x[index]`` for a basic index: integers, slices, ``...`` and None.

    Raises `TypeError` for any other, `IndexError` for one out of bounds.
    """
    parts = index if isinstance(index, tuple) else (index,)
    basic = Integral | slice | EllipsisType | None
    if not all(isinstance(i, basic) and not isinstance(i, bool) for i in parts):
        msg = (
            f"index {index!r:.60}: expected integers and slices; `ops.gather` takes rows by number"
        )
        raise TypeError(msg)
    return m.xp.asarray(x[index])  # type: ignore[no-any-return]


@primitive("movement", vjps=(lambda g, out, x, index, shape: slice_(g, index=index),))
def unslice(m: Arithmetic, x: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """Put the values at ``index`` of zeros of `shape`."""
    whole = m.empty(shape)
    whole[...] = 0
    whole[index] = x
    return whole


@primitive("movement", vjps=(lambda g, out, x, axis, place: Part(g, axis, place),))
def piece(m: Arithmetic, x: Array, axis: int, place: int) -> Array:
    """Return what lies at a place of an axis (from 0 on), without the axis: one of `unbind`."""
    return m.xp.asarray(x[(slice(None),) * axis + (place,)])  # type: ignore[no-any-return]


def unbind(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Take a tensor apart along an axis; the gradients are put together again, not added up.

    So it is with PyTorch's `split`, whose backward is one `cat`.  Slices of one tensor may overlap,
    so theirs are filled up with zeros and added, and every addition rounds.
    Raises `ValueError` (NumPy's `AxisError`) for an axis that there is not.
    """
    axis = normalize_axis_index(axis, x.ndim)
    return tuple(piece(x, axis=axis, place=place) for place in range(x.shape[axis]))


@primitive("movement")
def join(m: Arithmetic, *pieces: Array, axis: int, places: tuple[int, ...], length: int) -> Array:
    """Put pieces at places of a new axis of so many, zeros where there is none: see `unbind`."""
    shape = pieces[0].shape
    whole = m.empty((*shape[:axis], length, *shape[axis:]))
    if len(pieces) < length:
        whole[...] = 0
    for place, part in zip(places, pieces, strict=True):
        whole[(slice(None),) * axis + (place,)] = part
    return whole


@primitive("movement", vjps=(lambda g, out, x, ids: scatter_add(g, ids=ids, rows=x.shape[0]),))
def gather(m: Arithmetic, x: Array, ids: Array) -> Array:
    """Return the rows ``x[ids]``, as an embedding does; ids has any shape.

    Raises `ValueError` for ids that are not integers from 0 to the number of rows - 1.
    """
    return x[_checked_ids(m, ids, x.shape[0])]


@primitive("movement", vjps=(lambda g, out, x: g,))
def carry(m: Arithmetic, x: Array) -> Array:
    """Bring values into the carrier of the policy in force (see `Policy.arithmetic`)."""
    return x.astype(m.carrier)


@primitive("cast", vjps=(lambda g, out, x, to=None, like=None: cast(g, like=x.format),))
def cast(m: Arithmetic, x: Array, to: Any = None, like: Any = None) -> Array:
    """Change the format: to the precision `to`, or (a gradient) as the policy says, else `like`.

    Its gradient goes straight through, saturated values included, back to the operand's format.
    Raises `TypeError` without either, `ValueError` for a precision that there is not.
    """
    return x


# Elementwise: one operation, one rounding.


@primitive(vjps=(lambda g, out, a, b: g, lambda g, out, a, b: g))
def add(m: Arithmetic, a: Array, b: Array) -> Array:
    """Return a + b."""
    return m.xp.add(a, b, out=m.like(a, b))  # type: ignore[no-any-return]


@primitive()
def accumulate(m: Arithmetic, a: Array, b: Array) -> Array:
    """Add two gradients of one value that was used twice (an `add` with a name of its own)."""
    return m.xp.add(a, b, out=m.like(a, b))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, a, b: g, lambda g, out, a, b: neg(g)))
def sub(m: Arithmetic, a: Array, b: Array) -> Array:
    """Return a - b."""
    return m.xp.subtract(a, b, out=m.like(a, b))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, a, b: mul(g, b), lambda g, out, a, b: mul(g, a)))
def mul(m: Arithmetic, a: Array, b: Array) -> Array:
    """Return a * b."""
    return m.xp.multiply(a, b, out=m.like(a, b))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, a, b: div(g, b), lambda g, out, a, b: neg(div(mul(g, out), b))))
def div(m: Arithmetic, a: Array, b: Array) -> Array:
    """Return a / b; x/0 is an infinity and 0/0 NaN, as in IEEE 754."""
    return m.xp.divide(a, b, out=m.like(a, b))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: neg(g),))
def neg(m: Arithmetic, x: Array) -> Array:
    """Return -x (exact in every format with a sign)."""
    return m.xp.negative(x, out=m.like(x))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: mul(g, out),))
def exp(m: Arithmetic, x: Array) -> Array:
    """Return e^x; overflows in fp16 from x = 11.09."""
    return m.xp.exp(x, out=m.like(x))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: div(g, x),))
def log(m: Arithmetic, x: Array) -> Array:
    """Return the natural logarithm; log(0) = -inf, NaN below."""
    return m.xp.log(x, out=m.like(x))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: div(mul(g, 0.5), out),))
def sqrt(m: Arithmetic, x: Array) -> Array:
    """Return the square root; NaN for negative x."""
    return m.xp.sqrt(x, out=m.like(x))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: mul(g, mul(x, 2.0)),))
def square(m: Arithmetic, x: Array) -> Array:
    """Return x * x."""
    return m.xp.multiply(x, x, out=m.like(x))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: mul(g, sub(1.0, square(out))),))
def tanh(m: Arithmetic, x: Array) -> Array:
    """Return the hyperbolic tangent."""
    return m.xp.tanh(x, out=m.like(x))  # type: ignore[no-any-return]


@primitive(vjps=(lambda g, out, x: mul(g, heaviside(x)),))
def relu(m: Arithmetic, x: Array) -> Array:
    """Return max(x, 0); NaN stays NaN."""
    return m.xp.maximum(x, 0, out=m.like(x))  # type: ignore[no-any-return]


@primitive()
def heaviside(m: Arithmetic, x: Array) -> Array:
    """Return 1 where x > 0, else 0."""
    return (x > 0).astype(x.dtype)


@primitive(vjps=(lambda g, out, x, keep: mask(g, keep=keep),))
def mask(m: Arithmetic, x: Array, keep: Array) -> Array:
    """Return x where `keep` is true, else zero; no constant stands in for -infinity anywhere."""
    return m.xp.where(m.xp.asarray(keep), x, 0)  # type: ignore[no-any-return]


# Reductions and products: the accumulator decides what the running total keeps.


@primitive(
    "reduction", vjps=(lambda g, out, x, axis=None, keepdims=False: _spread(g, x, axis, keepdims),)
)
def sum(
    m: Arithmetic, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> Array:
    """Return the sum along `axis` (None: of all elements)."""
    return m.sum(x, axis, keepdims=keepdims)


@primitive("reduction", vjps=(lambda g, out, x, shape: broadcast_to(g, shape=x.shape),))
def sum_to(m: Arithmetic, x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which `shape` was broadcast to x's shape."""
    extra = x.ndim - len(shape)
    axes = (*range(extra), *(extra + i for i, n in enumerate(shape) if n != x.shape[extra + i]))
    return m.sum(x, axes, keepdims=True).reshape(shape)


@primitive("reduction", vjps=(lambda g, out, x, axis, keep=None: mul(g, _is_max(x, axis, keep)),))
def amax(m: Arithmetic, x: Array, axis: int, keep: Array | None = None) -> Array:
    """Return the largest value along `axis`, which stays with one element; NaN if any is NaN.

    Elements where `keep` is false do not count; where none counts, the result is -inf.
    """
    shown = x if keep is None else m.xp.where(m.xp.asarray(keep), x, -m.xp.inf)
    return m.xp.asarray(shown.max(axis=axis, keepdims=True))  # type: ignore[no-any-return]


@primitive("reduction", vjps=(lambda g, out, x, ids, rows: gather(g, ids=ids),))
def scatter_add(m: Arithmetic, x: Array, ids: Array, rows: int) -> Array:
    """Add each row of x, of any shape, to that which `ids` names, of `rows`: an embedding's gradient."""
    ids = _checked_ids(m, ids, rows)
    row = x.shape[ids.ndim :]
    vectors = x.reshape(ids.size, prod(row))
    return m.scatter_add(vectors, ids.reshape(-1), rows).reshape(rows, *row)


@primitive(
    "matmul",
    vjps=(lambda g, out, a, b: matmul(g, _transpose(b)), lambda g, out, a, b: _right(g, a, b)),
)
def matmul(m: Arithmetic, a: Array, b: Array) -> Array:
    """Return the matrix product of (..., M, K) and (K, N) or (..., K, N).

    Raises `ValueError` if the contracted lengths differ or an operand has fewer than two axes.
    """
    _check_matmul(a, b)
    return m.matmul(a, b)


def _check_matmul(a: Array, b: Array) -> None:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        msg = f"matmul: expected shapes (..., M, K) and (..., K, N); got {a.shape} and {b.shape}"
        raise ValueError(msg)


@primitive(
    "matmul",
    vjps=(
        lambda g, out, x, weight, bias: matmul(g, _transpose(weight)),
        lambda g, out, x, weight, bias: _right(g, x, weight),
        lambda g, out, x, weight, bias: sum_to(g, shape=bias.shape),
    ),
)
def linear(m: Arithmetic, x: Array, weight: Array, bias: Array) -> Array:
    """Return x @ weight + bias, rounded once: the bias is added to the finished sum, unrounded.

    Raises `ValueError` as `matmul` does.
    """
    _check_matmul(x, weight)
    y = m.matmul(x, weight)
    return _sum(y, bias, out=y)


@formula
def _sum(x: Any, y: Any) -> Any:
    return x + y


@primitive(
    "kernel",
    vjps=(lambda g, out, x, size, axis: _rotated_back(g, x, size, axis),),
)
def hadamard(m: Arithmetic, x: Array, size: int, axis: int, back: bool = False) -> Array:
    """Rotate runs of `size` values along `axis`: x @ (D H / sqrt(size)), wide, rounded once.

    H is Sylvester's Hadamard matrix, D a diagonal of fixed signs (`SIGNS`), `size` a power of two.
    The rotation is orthogonal, so two operands rotated along their contraction have the product
    that they had, and an outlier is spread over its run before a block's scale has to hold it.
    `back` rotates the other way.  An axis that does not end with a run is filled up with zeros, and
    is that much longer afterwards; a NaN or an infinity spoils its run.
    Rule: Transformer Engine, pytorch/custom_recipes/reference_nvfp4.py at d0067d0d.
    """
    xp = m.xp
    rows = xp.moveaxis(x, axis, -1)
    rows = xp.pad(rows, [(0, 0)] * (x.ndim - 1) + [(0, -rows.shape[-1] % size)])
    matrix = xp.asarray(_rotation(size), m.carrier)
    runs = rows.reshape(*rows.shape[:-1], -1, size) @ (matrix.T if back else matrix)
    back_in_place = xp.moveaxis(runs.reshape(rows.shape), -1, axis)
    return xp.ascontiguousarray(back_in_place)  # type: ignore[no-any-return]


SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
"""Transformer Engine's signs for the rotation of 16, repeated or cut for other lengths."""


@lru_cache(maxsize=8)
def _rotation(size: int) -> Array:
    """Return D H / sqrt(size)."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.resize(SIGNS, size)[:, None] * matrix / square_root(size)


def _rotated_back(g: Tensor, x: Tensor, size: int, axis: int) -> Tensor:
    """Gradient of `hadamard`, without the zeros that filled up the axis."""
    g = hadamard(g, size=size, axis=axis, back=True)
    return slice_(g, index=tuple(slice(n) for n in x.shape)) if g.shape != x.shape else g


def _transpose(x: Tensor) -> Tensor:
    return swapaxes(x, first=-1, second=-2)


def _right(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Gradient of the right operand; a shared one (a weight) sums over all leading axes at once."""
    if b.ndim == 2 and a.ndim > 2:
        rows = prod(a.shape[:-1])
        a, g = reshape(a, shape=(rows, a.shape[-1])), reshape(g, shape=(rows, g.shape[-1]))
    return matmul(_transpose(a), g)


def _spread(g: Tensor, x: Tensor, axis: Any, keepdims: bool) -> Tensor:
    """Gradient of a sum: the same g for every term."""
    if axis is not None and not keepdims:
        axes = normalize_axis_tuple(axis, x.ndim)
        g = reshape(g, shape=tuple(1 if i in axes else n for i, n in enumerate(x.shape)))
    return broadcast_to(g, shape=x.shape)


def _is_max(x: Tensor, axis: int, keep: Array | None) -> Array:
    """Return 1 where x is the maximum along its axis, else 0; ties share it equally.

    It is found again in x, since the output may be rounded and equal none of x's elements.
    """
    xp = array_module(x.data)
    kept = xp.asarray(True if keep is None else keep)
    shown = xp.where(kept, x.data, -xp.inf)
    hit = kept & (shown == shown.max(axis=axis, keepdims=True))
    return hit / xp.maximum(hit.sum(axis=axis, keepdims=True), 1)  # type: ignore[no-any-return]


def _checked_ids(m: Arithmetic, ids: Array, rows: int) -> Array:
    ids = m.xp.asarray(ids)
    if ids.dtype.kind not in "iu" or (ids.size and not 0 <= ids.min() <= ids.max() < rows):
        span = f" from {ids.min()} to {ids.max()}" if ids.size else ""
        msg = f"expected integer ids from 0 to {rows - 1}; got {ids.dtype}{span}"
        raise ValueError(msg)
    return ids
