"""What a recipe would take in memory, by format: a model, found out by running one step.

Nothing here reads a policy.  One step is run, and every tensor that must live from one part of it
to the next is counted at the width of the format that it lies on: weights, the copies of them that
a forward pass makes, gradients, the optimizer's state, and the activations that the backward pass
reads again.  What lives only inside an op, and the gradients of activations, are not counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.engine import ops
from precsim.engine.context import using
from precsim.engine.dispatch import Event
from precsim.engine.tape import tensors
from precsim.engine.tensor import Tensor
from precsim.formats.storage import stored_bytes
from precsim.nn.optim import Optimizer
from precsim.nn.optim8bit import BLOCK, AdamW8bit
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.trainer import make_trainer


@dataclass(frozen=True)
class Memory:
    """Bytes by format name, for each kind of tensor; see the module's docstring.

    `weights`: what the optimizer updates (the masters, where there are any).  `copies`: the same
    weights in other formats, which the forward pass made for its ops.  `parameters` counts values.
    """

    parameters: int
    weights: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    gradients: Counter[str] = field(default_factory=Counter)
    state: Counter[str] = field(default_factory=Counter)
    activations: Counter[str] = field(default_factory=Counter)

    @property
    def per_parameter(self) -> float:
        """Bytes for each parameter: everything but the activations, which depend on the batch."""
        kinds = (self.weights, self.copies, self.gradients, self.state)
        return sum(kind.total() for kind in kinds) / self.parameters

    @property
    def total(self) -> int:
        """All bytes."""
        return round(self.per_parameter * self.parameters) + self.activations.total()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        kinds = ("weights", "copies", "gradients", "state", "activations")
        by_format = {kind: dict(getattr(self, kind)) for kind in kinds}
        return {"parameters": self.parameters, **by_format, "total": self.total}


def memory(config: TrainConfig, corpus: Corpus) -> Memory:
    """Return what one step of a run takes.  Nothing is trained: the model is thrown away.

    Raises what `precsim.train` raises where the config and the text do not fit.
    """
    with using(config.policy, seed=config.seed, observers=()):
        trainer = make_trainer(config, corpus)
    read: set[int] = set()

    def note(event: Event) -> None:
        if event.phase == "backward":
            read.update(id(_owner(x)) for x in event.inputs)

    x, y = trainer.batches.train(0)
    with using(trainer.policy, seed=config.seed, step=0, observers=()):
        loss = trainer.model.loss(x, y)
        with using(role="loss", scope="loss.scale"):
            scaled = ops.mul(loss, trainer.scaler.scale)
        with using(observers=(note,)):
            scaled.backward()
        parameters = trainer.model.parameters
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        found = Memory(sum(p.size for p in parameters.values()))
        seen = {id(_owner(p.data)) for p in parameters.values()}
        for tensor in tensors(scaled):
            kept = id(_owner(tensor.data))
            if kept in seen:  # a view of what its producer, which comes first, was counted for
                continue
            seen.add(kept)
            if tensor.is_weight and tensor.node and tensor.node.op.kind == "cast":
                _add(found.copies, tensor)
            elif kept in read:
                _add(found.activations, tensor)
        for gradient in gradients.values():
            _add(found.gradients, gradient)
        trainer.optimizer.step(gradients)
        for weight in parameters.values():
            _add(found.weights, weight)
        _add_state(found.state, trainer.optimizer)
    return found


def _owner(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array that owns the memory which a view looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _add(counts: Counter[str], tensor: Tensor) -> None:
    if tensor.format is not None:  # a constant is part of the program
        counts[tensor.format.name] += stored_bytes(tensor.format, tensor.shape)


def _add_state(counts: Counter[str], optimizer: Optimizer) -> None:
    """Count the state; AdamW8bit's codes are no format: a byte, and an fp32 scale for a block."""
    for slot, states in optimizer.state.items():
        for state in states.values():
            if isinstance(optimizer, AdamW8bit) and optimizer.in_code(slot, state):
                counts["8-bit code"] += state.size + 4 * -(-state.size // BLOCK)
            else:
                _add(counts, state)
