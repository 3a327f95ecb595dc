"""A small GPT: pre-norm blocks of attention and MLP, learned positions, tanh-GELU.

The forward pass reads every weight through one `cast` to the policy's `weights` format; the tensors
in `parameters` are what the optimizer updates (the master copy, where there is one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from numbers import Integral

import numpy as np

from precsim.backend.random import key, normal, uniform
from precsim.engine import ops
from precsim.engine.context import current, scope, using
from precsim.engine.tensor import Tensor
from precsim.nn.functional import (
    Index,
    as_index,
    cross_entropy,
    gelu,
    layer_norm,
    linear,
    softmax,
)
from precsim.nn.parameter import read, stored


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model.

    `width` is that of the residual stream, split among the `heads`; the MLP is four times as wide.
    `context`: the longest text, in tokens.  `tied`: the head is the embedding, transposed.
    `dropout`: the probability that an activation is dropped while gradients are taped.
    Raises `ValueError` where they do not fit together.
    """

    layers: int = 2
    heads: int = 4
    width: int = 64
    context: int = 64
    vocabulary: int = 128
    tied: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "context", "vocabulary"):
            size = getattr(self, name)
            if not isinstance(size, Integral) or size < 1:
                msg = f"{name} must be a whole number from 1 on; got {size!r}"
                raise ValueError(msg)
        if self.width % self.heads:
            msg = f"heads must divide the width: {self.width} is not a multiple of {self.heads}"
            raise ValueError(msg)
        if not 0 <= self.dropout < 1:
            msg = f"dropout must be in [0, 1); got {self.dropout}"
            raise ValueError(msg)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name; a weight is (inputs, outputs)."""
        width, hidden = self.width, 4 * self.width
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocabulary, width),
            "wpe.weight": (self.context, width),
        }
        for layer in range(self.layers):
            for name, (rows, columns) in {
                "qkv": (width, 3 * width),
                "proj": (width, width),
                "fc1": (width, hidden),
                "fc2": (hidden, width),
            }.items():
                norm = {"qkv": "ln1", "fc1": "ln2"}.get(name)
                for part in ("weight", "bias") if norm else ():
                    shapes[f"blocks.{layer}.{norm}.{part}"] = (width,)
                shapes[f"blocks.{layer}.{name}.weight"] = (rows, columns)
                shapes[f"blocks.{layer}.{name}.bias"] = (columns,)
        shapes |= {"lnf.weight": (width,), "lnf.bias": (width,)}
        if not self.tied:
            shapes["head.weight"] = (width, self.vocabulary)
        return shapes


class GPT:
    """The model: ``model(tokens)`` gives logits, `loss` their cross-entropy, `generate` text.

    `parameters` has the weights by name, as the optimizer updates them (the master copy, where the
    policy has one); each forward pass casts them to the policy's `weights`.
    """

    def __init__(
        self,
        config: GPTConfig,
        seed: int = 0,
        parameters: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Take the weights from `parameters`, or draw them: N(0, 1/inputs), norms 1, biases 0.

        Drawn ones are smaller in the residual branches.  They are rounded into the current policy's
        master format (`weights` where it has none).  Raises `ValueError` for a weight that is
        missing, unknown or of another shape.
        """
        if not isinstance(config, GPTConfig):
            msg = f"expected a GPTConfig, such as GPTConfig(layers=2); got {config!r}"
            raise TypeError(msg)
        self.config = config
        self.parameters: dict[str, Tensor] = {}
        shapes = config.shapes()
        if parameters is None:
            parameters = {n: self._initial(n, shape, seed) for n, shape in shapes.items()}
        for name in {**shapes, **parameters}:
            if name not in parameters:
                msg = f"parameter {name!r} is missing: expected shape {shapes[name]}"
                raise ValueError(msg)
            self.set_parameter(name, parameters[name])

    def __repr__(self) -> str:
        weights = sum(parameter.size for parameter in self.parameters.values())
        return f"GPT({self.config}, {weights:,} weights)"

    def _initial(self, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, 1.0 if name.endswith("weight") else 0.0)
        deviation = 0.08 if name.startswith("w") else 1 / sqrt(shape[0])
        if name.endswith(("proj.weight", "fc2.weight")):  # two of these per layer add up
            deviation /= sqrt(2 * self.config.layers)
        return normal(key(seed, f"init/{name}", 0, 0), shape) * deviation

    def set_parameter(self, name: str, values: np.ndarray) -> None:
        """Round `values` into the policy's format and make them the parameter `name`.

        Raises `ValueError` for an unknown name or another shape.
        """
        expected = self.config.shapes().get(name)
        if expected is None or np.shape(values) != expected:
            wanted = f"shape {expected}" if expected else f"a name of {list(self.config.shapes())}"
            msg = f"parameter {name!r} of shape {np.shape(values)}: expected {wanted}"
            raise ValueError(msg)
        self.parameters[name] = stored(values, name)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.size for p in self.parameters.values())

    def __call__(self, tokens: Index) -> Tensor:
        """Return the logits (B, T, V) of the next token after each of tokens (B, T).

        Raises `ValueError` for another shape, a longer text than the context, or unknown tokens.
        """
        tokens = self._checked(tokens)
        time = tokens.shape[1]
        with scope("wte"):
            x = ops.gather(self._weight("wte.weight"), ids=tokens)  # (B, T, C)
        with scope("wpe"):
            x = x + self._weight("wpe.weight")[:time]
        for layer in range(self.config.layers):
            with scope(f"blocks.{layer}"):
                x = self._block(x, f"blocks.{layer}")
        with scope("lnf"):
            x = self._norm(x, "lnf")
        with scope("head"):
            if self.config.tied:
                return ops.matmul(x, self._weight("wte.weight").swapaxes(0, 1))
            return ops.matmul(x, self._weight("head.weight"))

    def loss(self, tokens: Index, targets: Index) -> Tensor:
        """Return the mean cross-entropy in nats; negative targets are not counted."""
        logits = self(tokens)
        with scope("loss"):
            return cross_entropy(logits, targets)

    def generate(
        self, prompt: Index, length: int, seed: int = 0, temperature: float = 1.0
    ) -> Index:
        """Return `length` tokens sampled one by one after `prompt` (T,), as a (T + length,) array.

        Temperature 0 takes the likeliest token.  Logits that are not numbers sample uniformly.
        Raises `ValueError` for a prompt that is not a row of tokens or a negative temperature.
        """
        tokens = as_index(prompt, "prompt")
        if tokens.ndim != 1 or not temperature >= 0:
            msg = (
                "expected a prompt of shape (time,) and a temperature >= 0; "
                f"got {tokens.shape} and {temperature}"
            )
            raise ValueError(msg)
        for position in range(length):
            with using(taping=False, observers=(), calls=Counter()):
                logits = self(tokens[None, -self.config.context :]).numpy()[0, -1]
            draw = uniform(key(seed, "sample", position, 0), ())
            tokens = np.append(tokens, _sample(logits, float(draw), temperature))
        return tokens

    def _block(self, x: Tensor, name: str) -> Tensor:
        with scope("ln1"):
            h = self._norm(x, f"{name}.ln1")
        x = x + self._attention(h, name)
        with scope("ln2"):
            h = self._norm(x, f"{name}.ln2")
        return x + self._mlp(h, name)

    def _attention(self, x: Tensor, name: str) -> Tensor:
        batch, time, width = x.shape
        heads, size = self.config.heads, width // self.config.heads
        qkv = self._linear(x, name, "qkv").reshape(batch, time, 3, heads, size)
        q, k, v = (part.swapaxes(1, 2) for part in ops.unbind(qkv, axis=2))  # (B, H, T, C/H)
        causal = np.tri(time, dtype=bool)
        with scope("attn"):
            scores = q @ k.swapaxes(2, 3) * (1 / sqrt(size))  # (B, H, T, T)
            y = self._dropout(softmax(scores, keep=causal)) @ v  # (B, H, T, C/H)
        y = y.swapaxes(1, 2).reshape(batch, time, width)
        return self._dropout(self._linear(y, name, "proj"))

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        h = self._linear(x, name, "fc1")  # (B, T, 4C)
        with scope("gelu"):
            h = gelu(h)
        return self._dropout(self._linear(h, name, "fc2"))

    def _linear(self, x: Tensor, block: str, name: str) -> Tensor:
        with scope(name):
            weight, bias = (self._weight(f"{block}.{name}.{part}") for part in ("weight", "bias"))
            return linear(x, weight, bias)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _weight(self, name: str) -> Tensor:
        return read(self.parameters[name])

    def _dropout(self, x: Tensor) -> Tensor:
        context = current()
        if self.config.dropout == 0 or not context.taping:
            return x
        path = f"dropout/{context.scope}"
        call = context.calls[path]
        context.calls[path] = call + 1
        kept = uniform(key(context.seed, path, context.step, call), x.shape) >= self.config.dropout
        with scope("dropout"):
            return ops.mask(x, keep=kept) * (1 / (1 - self.config.dropout))

    def _checked(self, tokens: Index) -> Index:
        tokens = as_index(tokens, "tokens")
        if tokens.ndim != 2:
            msg = f"expected tokens of shape (batch, time); got {tokens.shape}"
            raise ValueError(msg)
        if not 1 <= tokens.shape[1] <= self.config.context:
            msg = f"expected 1 to {self.config.context} tokens (the context); got {tokens.shape[1]}"
            raise ValueError(msg)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocabulary:
            msg = (
                f"expected tokens from 0 to {self.config.vocabulary - 1}; "
                f"got {tokens.min()} to {tokens.max()}"
            )
            raise ValueError(msg)
        return tokens


def _sample(logits: np.ndarray, draw: float, temperature: float) -> int:
    """Return the token at which the cumulated probability passes `draw`."""
    if not np.isfinite(logits).all():
        return int(draw * len(logits))
    if temperature == 0:
        return int(logits.argmax())
    p = np.exp((logits - logits.max()) / temperature)
    return min(int(np.searchsorted(np.cumsum(p) / p.sum(), draw, side="right")), len(p) - 1)
