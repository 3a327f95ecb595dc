"""AdamW with its state in 8 bits: a code of 256 numbers, and one scale for every 256 values.

The code is a table, not a format: fine near the largest value of a block, coarse far below it, over
seven decades.  Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization",
arXiv:2110.02861, as bitsandbytes (functional.create_dynamic_map) and torchao 0.18 (torchao/optim)
do it: the update is computed from the state before it is stored, in full precision.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from precsim.engine import ops
from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.context import using
from precsim.engine.dispatch import primitive
from precsim.engine.tensor import Tensor
from precsim.nn.optim import AdamW

BLOCK = 256
"""Values that share a scale, their largest magnitude; counted along the flattened tensor."""

FEWEST = 4096
"""Smaller tensors (biases, norms) keep their state in the policy's format."""

DECADES = 7


@cache
def dynamic_code(signed: bool) -> Array:
    """Return the 256 numbers of the code, ascending, as float32: from -0.993 (or 0) to 1.

    The decade 10^-k, k from 0 to 6, is cut into 2^(6-k) equal parts for each sign (twice as many
    where there is one sign), and the middle of each is a number; 0 and 1 are numbers, too.
    """
    numbers: list[Array] = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for decade in range(DECADES):
        parts = 2 ** (decade if signed else decade + 1)
        edges = _evenly_spaced(parts + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        numbers.append(middles * np.float32(10.0 ** (decade - DECADES + 1)))
        if signed:
            numbers.append(-numbers[-1])
    return np.sort(np.concatenate(numbers))


def _evenly_spaced(count: int) -> Array:
    """Return `count` float32 numbers from 0.1 to 1, rounded as `torch.linspace` rounds them."""
    first, last = np.float32(0.1), np.float32(1)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    up, down = first + step * index, last - step * (count - 1 - index)
    return np.where(index < count // 2, up, down).astype(np.float32)


@primitive("kernel")
def code_in_blocks(m: Arithmetic, x: Array, signed: bool) -> Array:
    """Replace each value by the nearest number of the code times its block's largest magnitude.

    A NaN or an infinity makes its whole block NaN (infinities stay); a block of zeros stays zero,
    and values below 2.75e-7 of their block's largest become zero (1.6e-7 in the unsigned code,
    where all negative ones do).  Half-way values go up.  The last block may be short.  Rule:
    torchao's, to the bit; bitsandbytes' CUDA kernel differs in keeping the sign of small negative
    values.
    """
    code = m.xp.asarray(dynamic_code(signed))
    flat = m.xp.zeros(-(-x.size // BLOCK) * BLOCK, np.float32)
    flat[: x.size] = x.reshape(-1)
    blocks = flat.reshape(-1, BLOCK)
    scale = m.xp.maximum(m.xp.abs(blocks).max(axis=-1, keepdims=True), np.float32(1e-12))
    scaled = blocks / scale
    below = m.xp.clip(m.xp.searchsorted(code, scaled, side="right") - 1, 0, len(code) - 1)
    above = m.xp.minimum(below + 1, len(code) - 1)
    half = (code[above] - code[below]) * np.float32(0.5)
    nearest = m.xp.where(scaled - code[below] >= half, above, below)
    coded = code[nearest] * scale
    return coded.reshape(-1)[: x.size].reshape(x.shape).astype(x.dtype)  # type: ignore[no-any-return]


class AdamW8bit(AdamW):
    """AdamW that stores m in the signed code and v in the unsigned one; see the module."""

    @staticmethod
    def in_code(slot: str, state: Tensor) -> bool:
        """Return whether a state tensor is stored in the code: m or v, and not too small."""
        return slot in ("m", "v") and state.size >= FEWEST

    def _remember(self, slot: str, name: str, old: Tensor, new: Tensor) -> Tensor:
        if not self.in_code(slot, new):
            return super()._remember(slot, name, old, new)
        state = ops.add(old, new)
        with using(role="optimizer_state"):
            self.state[slot][name] = code_in_blocks(state, signed=slot == "m")
        return state
