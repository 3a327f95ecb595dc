"""SGD and AdamW, every line of them an op in the funnel (phase "update").

The last op of each, `apply_update` (w + d), is where low-precision training most often fails in
silence: an update smaller than half a unit in the last place of w rounds to nothing (*swamped*).
State is rounded to the policy's `optimizer_state`, the rest to `update`, the new weight to
`master_weights` where there is a master copy, else to `weights`.

Rules: PyTorch 2.13's `torch.optim.SGD` and `AdamW` (Loshchilov and Hutter 2019, arXiv:1711.05101).
Coefficients are exact numbers, as PyTorch keeps them in doubles.
"""

from __future__ import annotations

from math import cos, isfinite, pi, sqrt

import numpy as np

from precsim.engine import ops
from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.context import current, using, walking
from precsim.engine.dispatch import primitive
from precsim.engine.tensor import Tensor
from precsim.formats.arrays import array_module

Tensors = dict[str, Tensor]


@primitive()
def apply_update(m: Arithmetic, weight: Array, delta: Array) -> Array:
    """Return weight + delta; an op of its own so that lost updates can be counted."""
    return weight + delta


class Optimizer:
    """What all have in common: parameters by name, state by slot and name, a step count.

    A parameter without a gradient stays as it is, its state too, and its steps do not count this one.

    `kahan` remembers what rounding the weight left over, in one more tensor of the weight's format
    (slot "kahan"), and adds it to the next update; an update is lost only where even that tensor
    swallows it.  The recurrence is optimi's (warner-benjamin/optimi, sgd.py): k += d; old = w;
    w += k; k += old - w; weight decay is part of d here, and outside the recurrence there.
    """

    slots: tuple[str, ...] = ()

    def __init__(
        self, parameters: Tensors, lr: float, weight_decay: float = 0.0, *, kahan: bool = False
    ) -> None:
        if not (isfinite(lr) and lr >= 0):
            msg = f"learning rate must be a finite number >= 0; got {lr}"
            raise ValueError(msg)
        if not (isfinite(weight_decay) and weight_decay >= 0):
            msg = f"weight decay must be a finite number >= 0; got {weight_decay}"
            raise ValueError(msg)
        self.parameters = parameters
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = 0
        self.missed: dict[
            str, int
        ] = {}  # of these steps, those in which a parameter had no gradient
        self.kahan = kahan
        if kahan:
            self.slots = (*self.slots, "kahan")
        self.state: dict[str, Tensors] = {slot: {} for slot in self.slots}

    def step(self, gradients: Tensors, lr: float | None = None) -> None:
        """Update every parameter that has a gradient; `lr` replaces the constructor's."""
        self.steps += 1
        for name in self.parameters.keys() - gradients.keys():
            self.missed[name] = self.missed.get(name, 0) + 1
        rate = self.lr if lr is None else lr
        policy = current().policy
        stored = "master_weights" if policy.has_master else "weights"
        with walking(taping=False) as walk:
            for name, gradient in gradients.items():
                weight = self.parameters[name]
                walk.to("update", name)
                delta = self._delta(name, weight, gradient, rate)
                walk.to(stored, name)
                new = self._add(name, weight, delta)
                weight.data, weight.format = new.data, new.format

    def _delta(self, name: str, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        """Return what to add to the weight."""
        raise NotImplementedError

    def _add(self, name: str, weight: Tensor, delta: Tensor) -> Tensor:
        """Return weight + delta; with Kahan compensation, plus what was left over before."""
        if not self.kahan:
            return apply_update(weight, delta)
        left_over = self.state["kahan"].get(name, _zeros(weight))
        total = apply_update(left_over, delta)
        new = ops.add(weight, total)
        self.state["kahan"][name] = ops.add(total, ops.sub(weight, new))
        return new

    def _remember(self, slot: str, name: str, old: Tensor, new: Tensor) -> Tensor:
        """Add two contributions into a state tensor, rounded to the state's format."""
        with using(role="optimizer_state"):
            self.state[slot][name] = ops.add(old, new)
        return self.state[slot][name]


class SGD(Optimizer):
    """w -= lr * m with m = momentum * m + g + weight_decay * w (m = g at first)."""

    slots = ("momentum",)

    def __init__(
        self,
        parameters: Tensors,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        kahan: bool = False,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, kahan=kahan)
        if not (isfinite(momentum) and momentum >= 0):
            msg = f"momentum must be a finite number >= 0; got {momentum}"
            raise ValueError(msg)
        self.momentum = momentum

    def _delta(self, name: str, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        if self.weight_decay:
            gradient = gradient + weight * self.weight_decay
        if self.momentum:
            old = self.state["momentum"].get(name)
            if old is None:
                with using(role="optimizer_state"):
                    gradient = ops.cast(gradient, like=gradient.format)
                self.state["momentum"][name] = gradient
            else:
                gradient = self._remember("momentum", name, old * self.momentum, gradient)
        return gradient * -lr


class AdamW(Optimizer):
    """Adam with decoupled weight decay: w -= lr * m^ / (sqrt(v^) + eps) + lr * decay * w.

    The decay is part of the one update that is rounded into the weight, as in a fused kernel.
    In fp16 without a master copy eps=1e-8 rounds to 0, and a zero second moment divides by it.
    """

    slots = ("m", "v")

    def __init__(
        self,
        parameters: Tensors,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        kahan: bool = False,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, kahan=kahan)
        if not all(0 <= b < 1 for b in betas) or not eps >= 0:
            msg = f"AdamW: expected betas in [0, 1) and eps >= 0; got {betas} and {eps}"
            raise ValueError(msg)
        self.betas = betas
        self.eps = eps

    def _delta(self, name: str, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        b1, b2 = self.betas
        m, v = (self.state[slot].get(name, _zeros(weight)) for slot in ("m", "v"))
        m = self._remember("m", name, m * b1, gradient * (1 - b1))
        v = self._remember("v", name, v * b2, ops.square(gradient) * (1 - b2))
        steps = self.steps - self.missed.get(name, 0)
        root = ops.sqrt(v) * (1 / sqrt(1 - b2**steps)) + self.eps
        delta = m / root * (-lr / (1 - b1**steps))
        if self.weight_decay:
            delta = delta + weight * (-lr * self.weight_decay)
        return delta


def _zeros(weight: Tensor) -> Tensor:
    return Tensor(array_module(weight.data).zeros_like(weight.data), weight.format)


def update_of(name: str) -> using:
    """Run a block as the update of one parameter: its scope, no tape."""
    return using(role="update", scope=name, taping=False)


def multiply(gradients: Tensors, factor: float) -> Tensors:
    """Return the gradients times a number (unscaling); 1 costs no op."""
    if factor == 1:
        return gradients
    scaled = {}
    for name, gradient in gradients.items():
        with update_of(f"unscale.{name}"):
            scaled[name] = gradient * factor
    return scaled


def norm(gradients: Tensors) -> float:
    """Return the global norm in float64, for the record; it is no part of the emulated step."""
    return float(
        np.sqrt(sum(np.square(g.numpy(), dtype=np.float64).sum() for g in gradients.values()))
    )


def clip(gradients: Tensors, limit: float) -> Tensors:
    """Shrink the gradients to a global norm of at most `limit`, in the policy's arithmetic.

    An infinite norm makes them zero (those that are infinite NaN), a NaN all of them NaN.
    Rule: `torch.nn.utils.clip_grad_norm_`.
    """
    if not limit > 0:
        msg = f"gradient clipping needs a limit > 0; got {limit}"
        raise ValueError(msg)
    with update_of("clip"):
        total: Tensor | None = None
        for gradient in gradients.values():
            part = ops.square(gradient).sum()
            total = part if total is None else total + part
        length = ops.sqrt(total).item() if total is not None else 0.0
    factor = limit / (length + 1e-6)
    if factor >= 1:
        return gradients
    clipped = {}
    for name, gradient in gradients.items():
        with update_of(f"clip.{name}"):
            clipped[name] = gradient * factor
    return clipped


def all_finite(gradients: Tensors) -> bool:
    """Return whether no gradient holds a NaN or an infinity."""
    return all(bool(np.isfinite(g.data).all()) for g in gradients.values())


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.0) -> float:
    """Return the rate at `step` (from 0): linear warm-up to `peak`, then a cosine to `floor`*peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + cos(pi * min(1.0, progress))))
