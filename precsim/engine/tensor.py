"""A tensor: an array of carrier values, the format that they lie on, and how they were made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.backend import get_backend
from precsim.engine.context import current, using
from precsim.engine.rule import Origin
from precsim.engine.tape import OPS, Node, backward
from precsim.formats.arrays import array_module
from precsim.formats.registry import AnyFormat

Array = npt.NDArray[Any]


class Tensor:
    """Values on a format's grid.  Operators dispatch ops, so every result is rounded and observed.

    `format` is None for constants, which take no part in "widest".  `origin` is what it is to
    the rules of a policy: a weight (a parameter, and what is only cast or moved from one), a
    gradient, or another input.
    """

    __slots__ = ("data", "format", "grad", "name", "node", "origin", "requires_grad")

    __array_priority__ = 100  # NumPy arrays on the left give way to Tensor's operators
    __array_ufunc__ = None  # np.add(t, x) is refused: its result would not be rounded

    def __init__(
        self,
        data: Array,
        format: AnyFormat | None = None,
        *,
        requires_grad: bool = False,
        node: Node | None = None,
        origin: Origin = Origin.INPUT,
        name: str = "",
    ) -> None:
        self.data = data
        self.format = format
        self.requires_grad = requires_grad
        self.node = node
        self.origin = origin
        self.name = name
        self.grad: Tensor | None = None

    @property
    def is_weight(self) -> bool:
        """Whether a gradient with respect to it is a weight gradient."""
        return self.origin is Origin.WEIGHT

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    def numpy(self) -> Array:
        """Return a copy of the values as a NumPy array in the carrier's dtype."""
        data: Any = self.data
        return data.get() if hasattr(data, "get") else np.array(data)

    def item(self) -> float:
        """Return the value of a tensor with one element; raise `ValueError` for any other."""
        if self.size != 1:
            msg = f"expected a tensor of one element; got shape {self.shape}: try t.numpy()"
            raise ValueError(msg)
        return float(self.data.item())

    def backward(self, gradient: Tensor | npt.ArrayLike | None = None) -> None:
        """Fill `.grad` of every leaf below this tensor.

        `gradient` has this tensor's shape (None: 1, for a single element); it is rounded into the
        policy's gradient format first, as everything is.
        Raises `ValueError` where no gradient is required or the shape does not fit.
        """
        if not self.requires_grad:
            msg = "backward() on a tensor that no parameter went into: expected requires_grad=True"
            raise ValueError(msg)
        if gradient is None and self.size != 1:
            msg = f"backward() of shape {self.shape} needs a gradient of that shape; got none"
            raise ValueError(msg)
        xp = array_module(self.data)
        seed = xp.ones_like(self.data) if gradient is None else gradient
        seed = seed.data if isinstance(seed, Tensor) else xp.asarray(seed, self.data.dtype)
        seed = Tensor(seed, origin=Origin.GRADIENT)
        if seed.shape != self.shape:
            msg = f"backward(): expected a gradient of shape {self.shape}; got {seed.shape}"
            raise ValueError(msg)
        with using(role="gradients", scope="seed", taping=False):
            backward(self, OPS["cast"].call(seed, like=self.format))

    def detach(self) -> Tensor:
        """Return the same values, cut off from the tape."""
        return Tensor(self.data, self.format)

    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        """Return the values in another shape, ``(2, 3)`` or ``2, 3`` (no rounding)."""
        sizes = shape[0] if shape and isinstance(shape[0], tuple) else shape
        return OPS["reshape"].call(self, shape=sizes)

    def swapaxes(self, first: int, second: int) -> Tensor:
        """Return the tensor with two axes exchanged (no rounding)."""
        return OPS["swapaxes"].call(self, first=first, second=second)

    def sum(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """Return the sum along an axis (None: of all elements)."""
        return OPS["sum"].call(self, axis=axis, keepdims=keepdims)

    def __array__(self, *_: Any, **__: Any) -> Array:
        """Refuse: what NumPy computes from then on is neither rounded nor seen."""
        msg = "a tensor becomes a NumPy array where you say so only: try t.numpy()"
        raise TypeError(msg)

    def __float__(self) -> float:
        return self.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Tensor:
        return OPS["slice"].call(self, index=index)

    def __add__(self, other: Any) -> Tensor:
        return OPS["add"].call(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return OPS["add"].call(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return OPS["sub"].call(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return OPS["sub"].call(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return OPS["mul"].call(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return OPS["mul"].call(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return OPS["div"].call(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return OPS["div"].call(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return OPS["matmul"].call(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return OPS["matmul"].call(other, self)

    def __neg__(self) -> Tensor:
        return OPS["neg"].call(self)

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), precision=6, threshold=20, separator=", ")
        fmt = self.format.name if self.format else "constant"
        extra = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({values}, {fmt}{extra})"


def tensor(data: npt.ArrayLike, *, requires_grad: bool = False, name: str = "") -> Tensor:
    """Return values as a tensor, rounded into the policy's `activations` format.

    NaN, infinities and values beyond the format's largest follow the policy's overflow rule.
    Raises `TypeError` for what is not an array of real numbers.
    """
    with using(taping=False, scope=name or "tensor"):
        rounded = OPS["cast"].call(data, to=current().policy.activations)
    return Tensor(rounded.data, rounded.format, requires_grad=requires_grad, name=name)


def as_tensor(value: Any) -> Tensor:
    """Return `value` as a tensor: a tensor passes through, numbers and arrays become constants.

    Raises `TypeError` for what is not a real number.
    """
    if isinstance(value, Tensor):
        return value
    context = current()
    xp: Any = np if context.backend == "numpy" else get_backend(context.backend)
    array = array_module(value).asarray(value)
    if array.dtype.kind not in "fiub":
        msg = f"expected a tensor, an array or a number; got {type(value).__name__} {value!r:.80}"
        raise TypeError(msg)
    return Tensor(xp.asarray(array, context.policy.carrier))
