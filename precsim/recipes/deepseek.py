"""DeepSeek-V3: fp8 with fine-grained scales, and sums that leave the tensor core every 128 products.

Activations and gradients have a scale for 1 x 128 values along the contraction, weights for
128 x 128, all e4m3.  What the forward pass multiplied is kept, and quantized once more along the
other axis for the weight gradient (`saved=cast`; the report's advice on hardware asks for support of
that).  A tensor core of the H800 keeps about 14 bits of a sum of 32 products, whatever else is
in it, so after 128 of them the sum is moved to an fp32 register (section 3.3.2).

The training code is not public.  Scales are those of the published kernels: amax / 448 in fp32,
amax no less than 1e-4.  Where gradients are small, that floor tells: in the demo's training it
flushes 3.6% of the backward results, and `te_block`, without it, 0.02%.  Not reproduced: the E5M6
cache of the projection's input, dispatch and combine of the experts, and scaling after the sum was
cut to 14 bits (here values are scaled before, which is the same where scales are powers of two).
"""

from __future__ import annotations

from precsim.recipes.linear import BF16, linear_layers
from precsim.recipes.recipe import Recipe

_OPERANDS = (
    "inputs=e4m3:1x128:amax_min=0.0001,weight_inputs=e4m3:128x128:amax_min=0.0001,"
    "accumulator=e8m13:toward_zero/32>fp32@128"
)

RECIPES = (
    Recipe(
        name="deepseek_v3",
        title="DeepSeek-V3",
        format="e4m3",
        policy=linear_layers(
            _OPERANDS,
            _OPERANDS,
            _OPERANDS,
            around=BF16.replace(
                "weight_gradients=bf16", "weight_gradients=fp32 optimizer_state=bf16"
            ),
        ),
        loss_scale="none",
        about="e4m3 everywhere, scales for 1 x 128 activations and gradients and 128 x 128 weights; "
        "sums of 14 bits, moved to fp32 every 128 products; fp32 weight gradients, Adam's m and v "
        "in bf16.",
        source="DeepSeek-AI 2024, arXiv:2412.19437, section 3.3; deepseek-ai/DeepSeek-V3 at 9b4e9788, "
        "inference/kernel.py; deepseek-ai/DeepGEMM at 54e22612",
        oracle="no oracle: the training code is not public; codes, scales and sums are those of the "
        "rules written out",
    ),
)
