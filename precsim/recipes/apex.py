"""NVIDIA Apex's opt levels O0 to O3, as apex.amp had them before it was removed in May 2025.

| property              | O0      | O1        | O2        | O3      |
|-----------------------|---------|-----------|-----------|---------|
| cast_model_type       | float32 | None      | float16   | float16 |
| patch_torch_functions | False   | True      | False     | False   |
| keep_batchnorm_fp32   | None    | None      | True      | False   |
| master_weights        | False   | None      | True      | False   |
| loss_scale            | 1.0     | "dynamic" | "dynamic" | 1.0     |

keep_batchnorm_fp32 spares batch norm and nothing else: layer norm is fp16 in O2.  O2 and O3 cast the
model's outputs to fp32, so the loss is fp32.  O2 makes its fp32 masters from weights that are fp16
already.
"""

from __future__ import annotations

from precsim.engine.policy import Policy
from precsim.recipes.recipe import Recipe
from precsim.recipes.torch import CPU_FP32, CUDA_FP32, FOLLOWING, autocast, forward_in

_SOURCE = "NVIDIA/apex before cb65b8ed (May 2025), apex/amp/frontend.py, lists/, _initialize.py"
_OUTPUTS_FP32 = forward_in("fp32", CPU_FP32)

_RECREATED = (
    "gradients of the same casts written out in PyTorch 2.13 on a CPU; apex itself ran on CUDA "
    "alone and was not run"
)

RECIPES = (
    Recipe(
        name="apex_O0",
        title="Apex O0",
        format="fp32",
        policy=Policy.parse("activations=fp32 arithmetic=fast granularity=torch"),
        loss_scale="none",
        about="fp32 training, the baseline.",
        source=_SOURCE,
        oracle="gradients of PyTorch 2.13 in fp32",
    ),
    Recipe(
        name="apex_O1",
        title="Apex O1",
        format="fp16",
        policy=autocast("fp16", ("gelu", *CUDA_FP32)),
        loss_scale="apex",
        about="Patched functions: as PyTorch's CUDA autocast, and GELU in fp32 too.",
        source=_SOURCE,
        oracle=_RECREATED,
    ),
    Recipe(
        name="apex_O2",
        title="Apex O2",
        format="fp16",
        policy=Policy.parse(
            "weights=fp16 initial_weights=fp16 master_weights=fp32 granularity=torch "
            + FOLLOWING
            + _OUTPUTS_FP32
        ),
        loss_scale="apex",
        about="An fp16 model, layer norm and residual stream included, and fp32 master weights, "
        "made from the rounded ones; fp32 loss.",
        source=_SOURCE,
        oracle=_RECREATED,
    ),
    Recipe(
        name="apex_O3",
        title="Apex O3",
        format="fp16",
        policy=Policy.parse(
            "weights=fp16 update=fp16 optimizer_state=fp16 granularity=torch "
            + FOLLOWING
            + _OUTPUTS_FP32
        ),
        loss_scale="none",
        about="Pure fp16 with fp32 outputs and loss; meant as a speed limit to compare with.",
        source=_SOURCE,
        oracle=_RECREATED,
    ),
)
