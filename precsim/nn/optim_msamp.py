"""AdamW as MS-AMP stores its state: after the step, each moment in a format of its own.

In `precsim.nn.optim` a moment is rounded into its format, and then the weight moves by what was
kept.  Here the weight moves by the moments in full, and they are rounded afterwards: a second moment
that its format flushes to zero does not divide the same step's update.  Rule: Azure/MS-AMP 0.2,
msamp/optim/adamw_base.py and adamw.cu.
"""

from __future__ import annotations

from precsim.engine import ops
from precsim.engine.context import current, using
from precsim.engine.tensor import Tensor
from precsim.nn.optim import AdamW


class AdamWMSAMP(AdamW):
    """AdamW whose states are called NAME.m and NAME.v, so that rules can tell them apart.

    ``rule=role=optimizer_state,scope=*.m,output=e4m3:tensor:pow2``
    """

    def _remember(self, slot: str, name: str, old: Tensor, new: Tensor) -> Tensor:
        state = ops.add(old, new)
        scope = f"{name}.{slot}"
        with using(role="optimizer_state", scope=scope):
            kept = current().policy.stored("optimizer_state", scope)
            self.state[slot][name] = ops.cast(state, to=kept)
        return state
