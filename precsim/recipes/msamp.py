"""MS-AMP: fp8 products as in Transformer Engine, and beyond them fp8 gradients and optimizer state.

| level | products   | weights | weight gradients | Adam's m and v |
|-------|------------|---------|------------------|----------------|
| O1    | e4m3, e5m2 | fp16    | e4m3             | fp32, fp32     |
| O2    | e4m3, e5m2 | fp16    | e4m3             | e4m3, fp16     |

Every one of these tensors has a scale of its own, a power of two of the moment; fp16 weights are the
only copy.  That holds for linear layers, and for the state of all parameters; embeddings, norms and
biases are fp32, everything else runs under bf16 autocast.

Not reproduced: O3 (ZeRO over several GPUs), and the factor by which gradients are divided before
they are added up across GPUs, which one GPU has no use for.
"""

from __future__ import annotations

from precsim.recipes.linear import LAYERS, linear_layers
from precsim.recipes.recipe import Recipe

_SOURCE = (
    "Peng et al. 2023, arXiv:2310.18313 (FP8-LM); Azure/MS-AMP at 9746ea85, msamp/nn/functional.py, "
    "common/tensor/meta.py, docs/user-tutorial/optimization-level.md"
)
_NO_KERNEL = "no oracle on a CPU: MS-AMP was read, not run; codes and scales are those of the rules"

_OPERANDS = "inputs=e4m3:tensor:pow2,gradient_inputs=e5m2:tensor:pow2"
_AROUND = (
    "weights=fp32 activations=bf16 gradients=bf16 weight_gradients=fp32 arithmetic=fast "
    f"rule=role=weights,scope={LAYERS}.weight,output=fp16:tensor:pow2 "
    f"rule=op=cast,role=weight_gradients,scope={LAYERS},output=e4m3:tensor:pow2 "
    "rule=op=matmul,scope=*attn,inputs=bf16 rule=op=matmul,scope=head,inputs=bf16 "
)
_STATE = (
    "rule=role=optimizer_state,scope=*.m,output=e4m3:tensor:pow2 "
    "rule=role=optimizer_state,scope=*.v,output=fp16:tensor:pow2 "
)
_GRADIENT = f"{_OPERANDS},output=e4m3:tensor:pow2"

RECIPES = (
    Recipe(
        name="msamp_O1",
        title="MS-AMP O1",
        format="e4m3",
        policy=linear_layers(_OPERANDS, _OPERANDS, _GRADIENT, around=_AROUND),
        loss_scale="none",
        about="HYBRID fp8 products, fp8 weight gradients, and fp16 weights without a master, each "
        "with a scale for the tensor.",
        source=_SOURCE,
        oracle=_NO_KERNEL,
    ),
    Recipe(
        name="msamp_O2",
        title="MS-AMP O2",
        format="e4m3",
        policy=linear_layers(_OPERANDS, _OPERANDS, _GRADIENT, around=_AROUND + _STATE),
        loss_scale="none",
        about="As O1, with Adam's m in e4m3 and v in fp16, stored after the step that they make.",
        entries={"optimizer": "adamw_msamp"},
        source=f"{_SOURCE}, msamp/optim/adamw_base.py, adamw.cu",
        oracle=_NO_KERNEL,
    ),
)
