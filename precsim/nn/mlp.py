"""Linear layers one after the other, as in a first example of a framework's documentation."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

from precsim.backend.random import key, uniform
from precsim.engine.context import scope
from precsim.engine.tensor import Tensor
from precsim.nn.functional import Index, cross_entropy, linear
from precsim.nn.parameter import read, stored


class MLP:
    """``Linear(a, b), Linear(b, c) ...`` for sizes (a, b, c, ...), with nothing between them.

    Weights and biases are drawn from +-1/sqrt(inputs), as by `torch.nn.Linear`, and rounded into the
    current policy's format.  Raises `ValueError` for less than one layer or sizes below 1.
    """

    def __init__(self, sizes: tuple[int, ...], seed: int = 0) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            msg = f"an MLP needs at least two sizes, of 1 or more; got {sizes}"
            raise ValueError(msg)
        self.layers = tuple(f"layer{number}" for number in range(1, len(sizes)))
        self.parameters: dict[str, Tensor] = {}
        for layer, (inputs, outputs) in zip(self.layers, pairwise(sizes), strict=True):
            for part, shape in {"weight": (inputs, outputs), "bias": (outputs,)}.items():
                name = f"{layer}.{part}"
                draws = uniform(key(seed, f"init/{name}", 0, 0), shape)
                self.parameters[name] = stored((2 * draws - 1) / sqrt(inputs), name)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs (N, last size) for inputs (N, first size)."""
        for layer in self.layers:
            with scope(layer):
                weight, bias = (self.parameters[f"{layer}.{part}"] for part in ("weight", "bias"))
                x = linear(x, read(weight), read(bias))
        return x

    def loss(self, x: Tensor, labels: Index) -> Tensor:
        """Return the mean cross-entropy of the outputs; labels (N,) below the last size."""
        logits = self(x)
        with scope("loss"):
            return cross_entropy(logits, labels)
