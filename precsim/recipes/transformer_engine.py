"""Transformer Engine: fp8 and fp4 training by NVIDIA's recipes.

Only linear layers are quantized; attention, norms, softmax, the residual stream and the head stay
bf16, weights have fp32 masters, and every product is handed on in bf16.  "HYBRID" is e4m3 in the
forward pass and e5m2 for gradients.

| recipe                | elements   | values that share a scale             | scale                   |
|-----------------------|------------|---------------------------------------|-------------------------|
| DelayedScaling        | e4m3, e5m2 | a tensor                              | from the last 1024 amax |
| Float8CurrentScaling  | e4m3, e5m2 | a tensor                              | max / amax, fp32        |
| MXFP8BlockScaling     | e4m3       | 32 along the contraction              | e8m0, rounded up        |
| Float8BlockScaling    | e4m3       | 128 along it; of weights 128 x 128    | a power of two          |
| NVFP4BlockScaling     | e2m1       | 16 along it; of weights 16 x 16       | e4m3, and fp32          |

Where blocks run along the contraction, a tensor that is multiplied along two axes is quantized
twice, both times from its bf16 values (`saved=original`; the library does both in the forward pass
and keeps the second, so its activations take less memory than `precsim recipes --measure` counts).
The kernels run on NVIDIA's GPUs alone, and so there is no oracle on a CPU: what is compared are the
rules, written out.  Not reproduced are the sums of cuBLAS with its fast accumulation (here float32),
and the layers at both ends of a network that NVIDIA's NVFP4 paper leaves in bf16.
"""

from __future__ import annotations

from precsim.recipes.linear import BF16, linear_layers
from precsim.recipes.recipe import Recipe

_SOURCE = "NVIDIA/TransformerEngine at d0067d0d, transformer_engine/common/recipe/__init__.py"
_NO_KERNEL = (
    "no oracle on a CPU: Transformer Engine was read, not run; codes and scales are those of "
)

_DELAYED = "inputs=e4m3:delayed,gradient_inputs=e5m2:delayed"
_CURRENT = "inputs=e4m3:tensor:inverse,gradient_inputs=e5m2:tensor:inverse"
_MX = "inputs=mxfp8_e4m3:rceil"
_BLOCK = "inputs=e4m3:1x128:pow2,weight_inputs=e4m3:128x128:pow2"
_FP4 = "inputs=nvfp4:inverse,weight_inputs=nvfp4:16x16:inverse,gradient_inputs=nvfp4:inverse:stochastic"

RECIPES = (
    Recipe(
        name="te_delayed",
        title="Transformer Engine, delayed scaling",
        format="e4m3",
        policy=linear_layers(_DELAYED, _DELAYED, _DELAYED, around=f"{BF16}delayed=max@1024 "),
        loss_scale="none",
        about="HYBRID fp8, one scale a tensor, from the largest magnitude that its place saw in the "
        "last 1024 steps; 1 in the first, in which small gradients vanish.",
        source=f"{_SOURCE}, DelayedScaling; recipe/delayed_scaling.cu",
        oracle=f"{_NO_KERNEL}the rule written out, step by step",
    ),
    Recipe(
        name="te_current",
        title="Transformer Engine, current scaling",
        format="e4m3",
        policy=linear_layers(_CURRENT, _CURRENT, _CURRENT),
        loss_scale="none",
        about="HYBRID fp8, one scale a tensor, from its own largest magnitude.",
        source=f"{_SOURCE}, Float8CurrentScaling",
        oracle=f"{_NO_KERNEL}torchao's tensorwise recipe, which PyTorch runs on a CPU",
    ),
    Recipe(
        name="te_mxfp8",
        title="Transformer Engine, MXFP8",
        format="mxfp8_e4m3",
        policy=linear_layers(f"{_MX},saved=original", _MX, _MX),
        loss_scale="none",
        about="e4m3 for gradients, too; 32 values along the contraction share a power of two that "
        "clips none of them.",
        source=f"{_SOURCE}, MXFP8BlockScaling; tests/cpp/test_common.h, float_to_e8m0",
        oracle=f"{_NO_KERNEL}the rule written out",
    ),
    Recipe(
        name="te_block",
        title="Transformer Engine, blocks of 128",
        format="e4m3",
        policy=linear_layers(f"{_BLOCK},saved=original", _BLOCK, _BLOCK),
        loss_scale="none",
        about="e4m3 for gradients, too; power-of-two scales for 1 x 128 activations and gradients "
        "and for 128 x 128 weights.",
        source=f"{_SOURCE}, Float8BlockScaling; tests/pytorch/references",
        oracle=f"{_NO_KERNEL}the rule written out",
    ),
    Recipe(
        name="te_nvfp4",
        title="Transformer Engine, NVFP4",
        format="nvfp4",
        policy=linear_layers(f"{_FP4},saved=original", _FP4, f"{_FP4},hadamard=16"),
        loss_scale="none",
        about="4-bit elements, 16 to an e4m3 scale, and an fp32 scale a tensor; gradients round by "
        "chance, and both operands of the weight gradient pass through a random Hadamard rotation.",
        source=f"{_SOURCE}, NVFP4BlockScaling; pytorch/custom_recipes/reference_nvfp4.py; NVIDIA "
        "2025, arXiv:2509.25149",
        oracle=f"{_NO_KERNEL}its reference implementation, written out",
    ),
)
