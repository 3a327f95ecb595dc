"""The tape: who was computed from whom, and the walk back along it.

The walk runs each op's backward rule.  The rules are written in the same ops as everything else, so
gradients are rounded and observed by the same funnel, in the scope of the op that made them; that a
value used twice adds up two gradients is an op too, and rounds.  (Gradients of the pieces that a
value was taken apart into are put together; nothing is added.)  Where the policy says "widest", a
gradient is cast to the format of the tensor that it belongs to, as PyTorch's autograd does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from precsim.engine.context import current, using, walking
from precsim.formats.format import Format

if TYPE_CHECKING:
    from precsim.engine.tensor import Tensor


class Part(NamedTuple):
    """The gradient of what lies at one place of an axis; the rest of the tensor's comes by itself."""

    gradient: Tensor
    axis: int
    place: int


Vjp = Callable[..., "Tensor | Part"]
"""Backward rule for one operand: (gradient of output, output, *operands, **params) -> gradient."""


@dataclass(frozen=True)
class Primitive:
    """An op: its forward on arrays, and one backward rule per operand.

    `kind` is "elementwise", "matmul", "reduction", "kernel", "cast" or "movement"; a movement op
    only moves values, so it never rounds.  `call` runs it through the funnel.
    """

    name: str
    kind: str
    forward: Callable[..., Any]
    vjps: tuple[Vjp, ...]
    call: Callable[..., Tensor]


OPS: dict[str, Primitive] = {}
"""Every op by name: `primitive` puts it here, a manifest lists it, and the tests loop over it."""


class Node(NamedTuple):
    """How a tensor was made."""

    op: Primitive
    inputs: tuple[Tensor, ...]
    params: dict[str, Any]
    scope: str


def backward(root: Tensor, gradient: Tensor) -> None:
    """Walk back from `root` and add to `.grad` of every leaf that requires a gradient.

    Leaves that have a gradient already (an earlier micro-batch) accumulate, in an op of their own.
    """
    arrived = _Arrived()
    arrived.sums[id(root)] = gradient
    with walking(taping=False) as walk:
        for tensor in reversed(_topological_order(root)):
            gradient = arrived.take(tensor)
            node = tensor.node
            if node is None:
                walk.to("weight_gradients", tensor.name)
                tensor.grad = _accumulate(tensor.grad, gradient)
                continue
            for x, vjp in zip(node.inputs, node.op.vjps, strict=False):
                if x.requires_grad:
                    walk.to(_role(x), node.scope)
                    arrived.add(x, vjp(gradient, tensor, *node.inputs, **node.params))


class _Arrived:
    """The gradients of tensors that the walk has not come to: a sum, and parts by axis and place."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.parts: dict[int, dict[tuple[int, int], Tensor]] = {}
        self.scopes: dict[int, str] = {}  # where a tensor was taken apart
        policy = current().policy
        self.follow = policy.follows("gradients") or policy.follows("weight_gradients")

    def add(self, x: Tensor, found: Tensor | Part) -> None:
        """Add what a backward rule found for x."""
        if isinstance(found, Part):
            parts, place = self.parts.setdefault(id(x), {}), (found.axis, found.place)
            self.scopes[id(x)] = current().scope
            parts[place] = _accumulate(parts.get(place), self._followed(x, found.gradient))
            return
        if found.shape != x.shape:
            found = OPS["sum_to"].call(found, shape=x.shape)
        self.sums[id(x)] = _accumulate(self.sums.get(id(x)), self._followed(x, found))

    def _followed(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Cast a gradient to the format of its tensor, where the policy says "widest"."""
        if not self.follow:  # as in most policies
            return gradient
        context = current()
        if context.policy.follows(context.role) and isinstance(x.format, Format):
            return OPS["cast"].call(gradient, like=x.format)
        return gradient

    def take(self, x: Tensor) -> Tensor:
        """Return the whole gradient of x, for which nothing comes any more."""
        total, parts = self.sums.pop(id(x), None), self.parts.pop(id(x), None)
        if parts:
            with using(role=_role(x), scope=self.scopes.pop(id(x)), taping=False):
                for axis in sorted({axis for axis, _ in parts}):
                    total = _accumulate(total, _join(x, axis, parts))
        assert total is not None
        return total


def _join(x: Tensor, axis: int, parts: dict[tuple[int, int], Tensor]) -> Tensor:
    """Put the parts along an axis together; those of several formats are cast to one before."""
    found = {place: part for (along, place), part in parts.items() if along == axis}
    pieces = list(found.values())
    if len({piece.format for piece in pieces}) > 1:
        pieces = [OPS["cast"].call(piece, like=x.format) for piece in pieces]
    return OPS["join"].call(*pieces, axis=axis, places=tuple(found), length=x.shape[axis])


def _role(x: Tensor) -> str:
    """Return the role of the gradient of x."""
    return "weight_gradients" if x.is_weight else "gradients"


def _accumulate(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else OPS["accumulate"].call(total, part)


def tensors(root: Tensor) -> list[Tensor]:
    """Return `root` and all that it was made from, inputs before outputs, each once.

    Of what requires no gradient only the direct operands of what does are on the tape.
    """
    made = _topological_order(root)
    found = {id(t): t for made_tensor in made if (node := made_tensor.node) for t in node.inputs}
    return list((found | {id(t): t for t in made}).values())


def _topological_order(root: Tensor) -> list[Tensor]:
    """Return the tensors that `root` depends on, inputs before outputs (no recursion: deep tapes)."""
    order: list[Tensor] = []
    seen: set[int] = set()
    stack = [root]
    made: list[Tensor] = []  # of what is on the stack, that whose inputs are above it
    while stack:
        tensor = stack.pop()
        if made and tensor is made[-1]:
            order.append(made.pop())
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            if tensor.node is None:
                order.append(tensor)
            else:
                made.append(tensor)
                stack.append(tensor)
                stack += [x for x in tensor.node.inputs if x.requires_grad]
    return order
