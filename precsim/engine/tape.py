"""The tape: who was computed from whom, and the walk back along it.

The walk runs each op's backward rule.  The rules are written in the same ops as everything else, so
gradients are rounded and observed by the same funnel, in the scope of the op that made them; that a
value used twice adds up two gradients is an op too, and rounds.  Where the policy says "widest", a
gradient is cast to the format of the tensor that it belongs to, as PyTorch's autograd does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from precsim.engine.context import using
from precsim.formats.format import Format

if TYPE_CHECKING:
    from precsim.engine.tensor import Tensor

Vjp = Callable[..., "Tensor"]
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
"""Every op by name; filled by `precsim.engine.ops`, printed by `precsim info`, tested by loop."""


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
    pending = {id(root): gradient}
    for tensor in reversed(_topological_order(root)):
        gradient = pending.pop(id(tensor))
        node = tensor.node
        if node is None:
            with using(role="weight_gradients", scope=tensor.name, taping=False):
                tensor.grad = _accumulate(tensor.grad, gradient)
            continue
        for x, vjp in zip(node.inputs, node.op.vjps, strict=False):
            if not x.requires_grad:
                continue
            role = "weight_gradients" if x.is_weight else "gradients"
            with using(role=role, scope=node.scope, taping=False) as context:
                part = vjp(gradient, tensor, *node.inputs, **node.params)
                if part.shape != x.shape:
                    part = OPS["sum_to"].call(part, shape=x.shape)
                if context.policy.follows(role) and isinstance(x.format, Format):
                    part = OPS["cast"].call(part, like=x.format)
                pending[id(x)] = _accumulate(pending.get(id(x)), part)


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
    stack = [(root, False)]
    while stack:
        tensor, expanded = stack.pop()
        if expanded:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            stack.append((tensor, True))
            inputs = tensor.node.inputs if tensor.node else ()
            stack.extend((x, False) for x in inputs if x.requires_grad)
    return order
