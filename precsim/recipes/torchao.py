"""torchao: float8 training with one scale a tensor or a row, and two ways to train in int8.

Its linear layers keep their operands in 16 bits for the backward pass, and each of the three
products quantizes its two operands anew, with scales of the moment (`saved=original`).

Where this differs: the sums of cuBLAS's fast accumulation are not reproduced, products are summed in
float32.
"""

from __future__ import annotations

from precsim.recipes.linear import BF16, LAYERS, linear_layers
from precsim.recipes.recipe import Recipe

_FLOAT8 = "torchao at 36027d82, torchao/float8/config.py, float8_linear.py, float8_scaling_utils.py"
_INT8 = "torchao at 36027d82, torchao/prototype/quantized_training"
_SCALED_MM = (
    "codes, scales and the three products of a layer with PyTorch 2.13's casts and torch._scaled_mm on "
    "a CPU: the same bits, but for one bf16 result in 8000 whose float32 sums differ; torchao itself "
    "was read, not run"
)
_INT_MM = (
    "codes, scales and the three products of a layer with PyTorch 2.13's casts and torch._int_mm on a "
    "CPU: the same bits; torchao itself was read, not run"
)

_TENSOR = "inputs=e4m3:tensor:inverse:amax_min=1e-12"
_TENSOR_GRADIENT = f"{_TENSOR},gradient_inputs=e5m2:tensor:inverse:amax_min=1e-12"
_ROW = "inputs=e4m3:row:pow2:amax_min=1e-12"
_INT8_ROW = "inputs=int8:row:bf16:inverse"

RECIPES = (
    Recipe(
        name="torchao_fp8_tensorwise",
        title="torchao float8, tensorwise",
        format="e4m3",
        policy=linear_layers(f"{_TENSOR},saved=original", _TENSOR_GRADIENT, _TENSOR_GRADIENT),
        loss_scale="none",
        about="One scale a tensor, from its own largest magnitude: e4m3 activations and weights, "
        "e5m2 gradients.",
        source=f'{_FLOAT8}, recipe "tensorwise", the default',
        oracle=_SCALED_MM,
    ),
    Recipe(
        name="torchao_fp8_rowwise",
        title="torchao float8, rowwise",
        format="e4m3",
        policy=linear_layers(f"{_ROW},saved=original", _ROW, _ROW),
        loss_scale="none",
        about="One scale, a power of two, for each row along the contraction; e4m3 for gradients, "
        "too.",
        source=f'{_FLOAT8}, recipe "rowwise"',
        oracle=_SCALED_MM,
    ),
    Recipe(
        name="torchao_fp8_rowwise_gw_hp",
        title="torchao float8, rowwise, weight gradients in bf16",
        format="e4m3",
        policy=linear_layers(
            f"{_ROW},saved=original", f"{_ROW},weight_inputs=e4m3:tensor:pow2:amax_min=1e-12"
        ),
        loss_scale="none",
        about="As rowwise, but the weight gradient is a bf16 product, and the weights have one scale "
        "a tensor for the input gradient, so that nothing is scaled along two axes.",
        source=f'{_FLOAT8}, recipe "rowwise_with_gw_hp"',
        oracle=_SCALED_MM,
    ),
    Recipe(
        name="torchao_int8_mixed",
        title="torchao int8 mixed precision",
        format="int8",
        policy=linear_layers(f"{_INT8_ROW},saved=original", _INT8_ROW, _INT8_ROW),
        loss_scale="none",
        about="All three products in int8, one bf16 scale for each row of the left and column of the "
        "right operand, rounded to nearest.",
        source=f"{_INT8}/int8_mixed_precision.py, int8.py",
        oracle=_INT_MM,
    ),
    Recipe(
        name="torchao_int8_weights",
        title="torchao int8 weights, stochastic",
        format="int8",
        policy=linear_layers(
            "",
            around=BF16.replace(" master_weights=fp32", "")
            + f"rule=role=weights,scope={LAYERS}.weight,output=int8:column:bf16:full:stochastic ",
        ),
        loss_scale="none",
        about="The only copy of the linear layers' weights in int8, one bf16 scale an output; an "
        "update rounds by chance.  Products, gradients and all other weights are bf16.",
        source=f"{_INT8}/int8.py (from_float rounds the first weights to nearest, here they too "
        "round by chance)",
        oracle="the rule written out; torchao itself was read, not run",
    ),
)
