"""Keras's dtype policies: one compute dtype a layer, one for its variables, no op lists.

Every layer casts its floating inputs to the compute dtype and reads its variables in it, so unlike
under autocast the residual stream is low precision, and so is softmax.  Embedding and
LayerNormalization keep their variables as they are; layer norm computes in fp32, and its result is
cast, here by the linear layer that reads it.  Losses are computed in floatx, fp32.
"""

from __future__ import annotations

from precsim.engine.policy import Policy
from precsim.recipes.recipe import Recipe
from precsim.recipes.torch import FOLLOWING


def dtype_policy(compute: str, variables: str) -> Policy:
    """A model whose layers compute in one format and keep variables and optimizer in another."""
    states = f"weights={variables} update={variables} optimizer_state={variables} {FOLLOWING}"
    rules = (
        f"rule=op=matmul,inputs={compute} "
        f"rule=op=add,role=activations,scope=wpe,inputs={compute} "
        "rule=op=layer_norm,inputs=fp32 "
        "rule=op=cross_entropy,role=activations,inputs=fp32"
    )
    return Policy.parse(f"{states} {rules}")


_SOURCE = "Keras 3 at 3422977a, keras/src/dtype_policies/dtype_policy.py, layers/layer.py"
_NO_KERAS = (
    "gradients of the same casts written out in PyTorch 2.13 on a CPU; Keras was read, not run, and "
    "its backends may round more (TensorFlow adds a bias apart) or less often (XLA fuses)"
)
_ADAM = {"eps": 1e-7}

RECIPES = (
    Recipe(
        name="keras_mixed_float16",
        title="Keras mixed_float16",
        format="fp16",
        policy=dtype_policy("fp16", "fp32"),
        loss_scale="keras",
        about="fp16 layers, fp32 variables, LossScaleOptimizer (which compile adds by itself).  "
        "This model scales attention scores where Keras scales the query.",
        source=_SOURCE,
        oracle=_NO_KERAS,
        entries=_ADAM,
    ),
    Recipe(
        name="keras_mixed_bfloat16",
        title="Keras mixed_bfloat16",
        format="bf16",
        policy=dtype_policy("bf16", "fp32"),
        loss_scale="none",
        about="bf16 layers, fp32 variables, no loss scaling.",
        source=_SOURCE,
        oracle=_NO_KERAS,
        entries=_ADAM,
    ),
    Recipe(
        name="keras_float16",
        title="Keras float16",
        format="fp16",
        policy=dtype_policy("fp16", "fp16"),
        loss_scale="none",
        about="fp16 layers and variables, optimizer included; fp32 inside layer norm and in the "
        "loss.  compile adds no loss scaling here.",
        source=_SOURCE,
        oracle=_NO_KERAS,
        entries=_ADAM,
    ),
)
