"""PyTorch's GradScaler: which optimizer is where between `scale` and `update`, and what is a mistake.

`precsim.train` needs none of this; it is for loops of one's own, with several optimizers, clipping
and accumulation.  Every optimizer goes from ready through unscaled to stepped, and back at `update`.
The rules and the first sentence of each error are those of torch/amp/grad_scaler.py, PyTorch 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from precsim.engine import ops
from precsim.engine.context import using
from precsim.engine.tensor import Tensor
from precsim.nn import scaling
from precsim.nn.optim import Optimizer
from precsim.nn.scaling import DynamicScale, LossScale


class Stage(Enum):
    """Where an optimizer is since the last `update`."""

    READY = "ready"
    UNSCALED = "unscaled"
    STEPPED = "stepped"


@dataclass
class _Seen:
    """What the scaler knows of one optimizer since the last `update`."""

    stage: Stage = Stage.READY
    finite: bool | None = None  # None: its gradients were not looked at yet


class GradScaler:
    """Scale the loss, unscale and check gradients per optimizer, skip steps, adjust the scale.

        scaler = GradScaler()
        scaler.scale(loss).backward()
        scaler.unscale(optimizer)  # only to clip, or to look
        scaler.step(optimizer)
        scaler.update()

    The scale must not change between the micro-batches of one step: their gradients add up scaled.
    `state` is where it begins, or the text of one as `precsim.nn.scaling.parse` reads it.
    """

    def __init__(self, state: LossScale | str | None = None) -> None:
        self.state = DynamicScale() if state is None else scaling.parse(state)
        self._seen: dict[int, _Seen] = {}

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, in the policy's `loss` format."""
        with using(role="loss", scope="loss.scale"):
            return ops.mul(loss, self.state.scale)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, and note whether they are finite.

        Raises `ValueError` for fp16 gradients, which have no room for what was scaled up, and
        `RuntimeError` where they are unscaled already.
        """
        seen = self._of(optimizer)
        if seen.stage is Stage.UNSCALED:
            msg = (
                "unscale_() has already been called on this optimizer since the last update(): its "
                "gradients are divided already; call it once, after the last micro-batch"
            )
            raise RuntimeError(msg)
        if seen.stage is Stage.STEPPED:
            msg = "unscale_() is being called after step(): unscale, then clip, then step"
            raise RuntimeError(msg)
        gradients = {n: p.grad for n, p in optimizer.parameters.items() if p.grad is not None}
        halves = [
            n for n, g in gradients.items() if g.format is not None and g.format.name == "fp16"
        ]
        if halves:
            msg = (
                f"Attempting to unscale FP16 gradients ({halves[0]}): the weights are fp16, so their "
                "gradients are; keep fp32 weights, or fp32 master weights, and cast in the forward"
            )
            raise ValueError(msg)
        unscaled, finite = scaling.unscale(self.state, gradients)
        for name, gradient in unscaled.items():
            optimizer.parameters[name].grad = gradient
        seen.stage, seen.finite = Stage.UNSCALED, finite if gradients else None

    def step(self, optimizer: Optimizer, lr: float | None = None) -> bool:
        """Unscale if that is not done, and update the weights unless a gradient is not finite.

        Returns whether it updated; PyTorch keeps that to itself.
        Raises `RuntimeError` for a second step, and where there is no gradient at all.
        """
        seen = self._of(optimizer)
        if seen.stage is Stage.STEPPED:
            msg = (
                "step() has already been called since the last update(): call update() once a step"
            )
            raise RuntimeError(msg)
        if seen.stage is Stage.READY:
            self.unscale(optimizer)
        if seen.finite is None:
            msg = "No inf checks were recorded for this optimizer: it has no gradients; call backward()"
            raise RuntimeError(msg)
        seen.stage = Stage.STEPPED
        skips = self.state.skips and not seen.finite
        if not skips:
            parameters = optimizer.parameters.items()
            optimizer.step({n: p.grad for n, p in parameters if p.grad is not None}, lr)
        return not skips

    def update(self) -> None:
        """Adjust the scale: one gradient that is not finite, in any optimizer, is an overflow.

        Raises `RuntimeError` where no optimizer was looked at since the last time, and
        `LossScaleError` where the scaler gives up.
        """
        verdicts = [seen.finite for seen in self._seen.values() if seen.finite is not None]
        if not verdicts:
            msg = "No inf checks were recorded prior to update: call step() or unscale() first"
            raise RuntimeError(msg)
        self.state = self.state.adjust(all(verdicts))
        self._seen = {}

    def _of(self, optimizer: Optimizer) -> _Seen:
        return self._seen.setdefault(id(optimizer), _Seen())
