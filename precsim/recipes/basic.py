"""The six recipes of the demo: what each format needs, and what happens where it does not get it.

All of them compute in float32 and round to nearest (`arithmetic=fast`), keep the optimizer's
arithmetic and state in fp32, as well as the number that is reported as the loss, and differ in
where tensors live.  "Weights only in X" means that the
update is rounded into X, with no more precise copy behind it.
"""

_WIDE = (
    "update=fp32 optimizer_state=fp32 loss=fp32 rule=op=cross_entropy,output=fp32 arithmetic=fast"
)

BASIC = (
    # name, title, format, policy, loss scale, about
    (
        "fp32",
        "fp32",
        "fp32",
        f"weights=fp32 activations=fp32 gradients=fp32 weight_gradients=fp32 {_WIDE}",
        "none",
        "The reference: nothing is narrower than 24 bits.",
    ),
    (
        "fp16",
        "fp16, no loss scaling",
        "fp16",
        f"weights=fp16 activations=fp16 gradients=fp16 weight_gradients=fp16 {_WIDE}",
        "none",
        "Weights, activations and gradients only in fp16, and the loss as it is.",
    ),
    (
        "fp16_scaled",
        "fp16, dynamic scaling",
        "fp16",
        "weights=fp16 activations=fp16 gradients=fp16 weight_gradients=fp16 master_weights=fp32 "
        + _WIDE,
        "dynamic:65536:100",
        "Mixed precision as in Micikevicius et al. 2018: fp32 master weights, dynamic loss scale.",
    ),
    (
        "bf16",
        "bf16",
        "bf16",
        f"weights=bf16 activations=bf16 gradients=bf16 weight_gradients=bf16 {_WIDE}",
        "none",
        "Weights, activations and gradients only in bf16: fp32's range, 8 significand bits.",
    ),
    (
        "fp8",
        "fp8 e4m3/e5m2",
        "e4m3",
        "weights=e4m3:saturate activations=e4m3:saturate gradients=e5m2 weight_gradients=e5m2 "
        "master_weights=fp32 " + _WIDE,
        "dynamic:65536:100",
        "e4m3 forward, e5m2 backward, fp32 master weights, dynamic loss scale, no tensor scales.",
    ),
    (
        "int8",
        "int8, stochastic",
        "int8",
        "weights=int8:row:stochastic activations=int8:row gradients=int8:row:stochastic "
        "weight_gradients=int8:row:stochastic " + _WIDE,
        "none",
        "int8 everywhere, one scale a row; gradients and weights (the only copy) round by chance.",
    ),
)
