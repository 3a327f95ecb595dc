"""The six recipes of the demo: what each format needs, and what happens where it does not get it.

All of them compute in float32 and round to nearest (`arithmetic=fast`), keep the optimizer's
arithmetic and state in fp32, as well as the number that is reported as the loss, and differ in
where tensors live.  "Weights only in X" means that the update is rounded into X, with no more
precise copy behind it.
"""

from __future__ import annotations

from dataclasses import replace

from precsim.engine.policy import Policy
from precsim.engine.precision import Precision
from precsim.recipes.recipe import Recipe


def _policy(forward: str, backward: str, others: str = "") -> Policy:
    """Weights and activations in one format, both kinds of gradients in another, the rest fp32."""
    roles = f"weights={forward} activations={forward} gradients={backward}"
    rules = "rule=op=cross_entropy,output=fp32"
    return Policy.parse(f"{roles} weight_gradients={backward} {rules} arithmetic=fast {others}")


RECIPES = (
    Recipe(
        name="fp32",
        title="fp32",
        format="fp32",
        policy=_policy("fp32", "fp32"),
        loss_scale="none",
        about="The reference: nothing is narrower than 24 bits.",
    ),
    Recipe(
        name="fp16",
        title="fp16, no loss scaling",
        format="fp16",
        policy=_policy("fp16", "fp16"),
        loss_scale="none",
        about="Weights, activations and gradients only in fp16, and the loss as it is.",
    ),
    Recipe(
        name="fp16_scaled",
        title="fp16, dynamic scaling",
        format="fp16",
        policy=_policy("fp16", "fp16", "master_weights=fp32"),
        loss_scale="dynamic:65536:100",
        about="Mixed precision: fp32 master weights, dynamic loss scale.",
        source="Micikevicius et al. 2018, arXiv:1710.03740",
    ),
    Recipe(
        name="bf16",
        title="bf16",
        format="bf16",
        policy=_policy("bf16", "bf16"),
        loss_scale="none",
        about="Weights, activations and gradients only in bf16: fp32's range, 8 significand bits.",
    ),
    Recipe(
        name="fp8",
        title="fp8 e4m3/e5m2",
        format="e4m3",
        policy=_policy("e4m3:saturate", "e5m2", "master_weights=fp32"),
        loss_scale="dynamic:65536:100",
        about="e4m3 forward, e5m2 backward, fp32 master weights, dynamic loss scale, no tensor "
        "scales.",
    ),
    Recipe(
        name="int8",
        title="int8, stochastic",
        format="int8",
        policy=replace(
            _policy("int8:row", "int8:row:stochastic"),
            weights=Precision.parse("int8:row:stochastic"),
        ),
        loss_scale="none",
        about="int8 everywhere, one scale a row; gradients and weights (the only copy) round by "
        "chance.",
    ),
)
