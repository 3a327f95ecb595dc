"""The three products of a linear layer as torchao and SwitchBack compute them, in PyTorch's own ops.

Casts, scales and matmuls (torch._scaled_mm, torch._int_mm) are PyTorch's; the rules are written out
from torchao/float8/float8_utils.py and prototype/quantized_training/int8.py at 36027d82, and from
bitsandbytes' nn/triton_based_modules.py before c27dc581.  `python tests/products_peer.py` writes
what PyTorch 2.13 gives on a CPU to tests/data.
"""

from pathlib import Path

import by_hand
import numpy as np

STORED = Path(__file__).parent / "data" / "products_torch213.npz"
ROWS, INPUTS, OUTPUTS = 48, 64, 32


def operands(name):
    """Return activations, weights (inputs, outputs) and gradients as float32, for a recipe.

    They are bf16 numbers, but for SwitchBack: with 8 significant bits, quotients x / amax * 127 are
    often midpoints exactly, and there the roundings of its float32 operations decide.
    """
    random = np.random.default_rng(9)
    x = random.standard_normal((ROWS, INPUTS)) * 4.0 ** random.integers(-3, 3, (ROWS, 1))
    w = random.standard_normal((INPUTS, OUTPUTS)) / 8
    g = random.standard_normal((ROWS, OUTPUTS)) * 1e-4
    found = [a.astype(np.float32) for a in (x, w, g)]
    return found if name == "switchback" else [by_hand.bf16(a) for a in found]


def to_fp8(torch, x, dtype, axis, *, power_of_two):
    """Return (codes, factor): factor = max / amax in float64, rounded, perhaps to 2^k below."""
    largest = torch.finfo(dtype).max
    amax = x.abs().amax() if axis is None else x.abs().amax(dim=axis, keepdim=True)
    factor = (largest / amax.double().clamp(min=1e-12)).float()
    if power_of_two:
        factor = torch.exp2(torch.floor(torch.log2(factor)))
    scaled = (x.float() * factor).clamp(-largest, largest)
    return scaled.to(dtype), factor


def scaled_product(torch, a, b, left, right, *, power_of_two):
    """Multiply bf16 a (M, K) and b (K, N); left and right are (dtype, axis of the maximum)."""
    a8, fa = to_fp8(torch, a, *left, power_of_two=power_of_two)
    b8, fb = to_fp8(torch, b, *right, power_of_two=power_of_two)
    if left[1] is not None and right[1] is None:  # _scaled_mm wants both by rows, or neither
        fb = fb.expand(1, b.shape[1]).contiguous()
    return torch._scaled_mm(
        a8.contiguous(), b8.t().contiguous().t(),
        scale_a=fa.reciprocal(), scale_b=fb.reciprocal(), out_dtype=torch.bfloat16,
    )  # fmt: skip


def as_torchao(torch, x, axis):
    scale = (x.abs().amax(dim=axis, keepdim=True) / 127).float()  # rounded to x's bf16
    scaled = x.float() * (1.0 / scale.clamp(min=1e-12))
    return scaled.round().clamp(-128, 127).to(torch.int8), scale


def as_switchback(torch, x, axis):
    x = x.float()
    amax = x.abs().amax() if axis is None else x.abs().amax(dim=axis, keepdim=True)
    scaled = 127.0 * (x / amax) if axis is not None else 127.0 * (x * (1.0 / amax))
    return scaled.round().to(torch.int8), amax.double() / 127


def int8_product(torch, a, b, axes, quantize):
    (a8, sa), (b8, sb) = (quantize(torch, x, i) for x, i in zip((a, b), axes, strict=True))
    total = torch._int_mm(a8.contiguous(), b8.contiguous())
    return (total.double() * sa.double() * sb.double()).to(torch.bfloat16)


def in_torch(torch):
    """Return recipe -> (forward, input gradient, weight gradient), bf16 numbers as float32."""

    def pairs_of(name):
        x, w, g = (torch.tensor(a) for a in operands(name))
        return ((x, w), (g, w.t()), (x.t(), g))

    pairs = [(a.bfloat16(), b.bfloat16()) for a, b in pairs_of("torchao")]
    wide = pairs_of("switchback")
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    hybrid = (((e4m3,), (e4m3,)), ((e5m2,), (e4m3,)), ((e4m3,), (e5m2,)))

    def float8(left_axis, right_axis, formats, *, power_of_two):
        return [
            scaled_product(
                torch, a, b, (*left, left_axis), (*right, right_axis), power_of_two=power_of_two
            )
            for (a, b), (left, right) in zip(pairs, formats, strict=True)
        ]

    rowwise = float8(1, 0, (((e4m3,), (e4m3,)),) * 3, power_of_two=True)
    by_tensor = scaled_product(torch, *pairs[1], (e4m3, 1), (e4m3, None), power_of_two=True)
    int8 = [int8_product(torch, a, b, (1, 0), as_torchao) for a, b in pairs]
    back = [int8_product(torch, a, b, (1, None), as_switchback) for a, b in wide[:2]]
    exact, exact_wide = ((a.double() @ b.double()).bfloat16() for a, b in (pairs[2], wide[2]))
    found = {
        "torchao_fp8_tensorwise": float8(None, None, hybrid, power_of_two=False),
        "torchao_fp8_rowwise": rowwise,
        "torchao_fp8_rowwise_gw_hp": [rowwise[0], by_tensor, exact],
        "torchao_int8_mixed": int8,
        "switchback": [*back, exact_wide],
    }
    return {name: [p.float().numpy() for p in products] for name, products in found.items()}


def main():
    import torch

    torch.set_num_threads(1)
    flat = {f"{n}/{i}": p for n, ps in in_torch(torch).items() for i, p in enumerate(ps)}
    np.savez_compressed(STORED, **flat)


if __name__ == "__main__":
    main()
