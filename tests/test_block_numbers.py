"""Scaled formats against published numbers, worked examples and what libraries give."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from precsim import testing
from precsim.formats.codes import decode, encode
from precsim.formats.quantize import quantize
from precsim.formats.registry import element_of, format
from precsim.formats.scaled import Block, ScaleRule


@pytest.mark.parametrize(
    ("amax", "rule", "exponent"),
    [
        # e4m3: emax 8, max 448.  OCP MX 1.0 section 6.3 for "floor"; torchao's names for the others.
        (6.5, "floor", -6), (6.5, "rceil", -6), (6.5, "ceil", -5), (6.5, "even", -6),
        (452.0, "floor", 0), (452.0, "rceil", 1), (452.0, "ceil", 1), (452.0, "even", 0),
        (448.0, "floor", 0), (448.0, "rceil", 0), (448.0, "ceil", 1), (448.0, "even", 0),
        (495.9, "even", 0), (496.0, "even", 1), (512.0, "floor", 1), (512.0, "ceil", 1),
        (1.0, "floor", -8), (1.0, "ceil", -8), (1.0, "rceil", -8), (1.75, "rceil", -8),
        (1.7500001, "rceil", -7), (2 - 2.0**-23, "floor", -8), (2 - 2.0**-52, "floor", -8),
    ],
)  # fmt: skip
def test_the_scale_of_an_mxfp8_block_follows_the_named_rule(amax, rule, exponent):
    x = np.zeros(32)
    x[5] = -amax
    codes, scales = encode(x, f"mxfp8_e4m3:{rule}")
    assert scales.tolist() == [exponent + 127]
    assert decode(scales, "e8m0").tolist() == [2.0**exponent]
    assert decode(codes, "e4m3")[5] == -quantize(amax / 2.0**exponent, "e4m3", overflow="saturate")


def test_452_is_clipped_by_the_floor_rule_and_by_no_other():
    x = np.zeros(32)
    x[0] = 452.0 * 4
    got = {rule: quantize(x, f"mxfp8:{rule}")[0] / 4 for rule in ("floor", "even", "ceil", "rceil")}
    assert got == {"floor": 448.0, "even": 448.0, "ceil": 448.0, "rceil": 448.0}
    x[0] = 4 * 490.0  # beyond the midpoint of 448 and 512
    got = {rule: quantize(x, f"mxfp8:{rule}")[0] / 4 for rule in ("floor", "even", "ceil", "rceil")}
    assert got == {"floor": 448.0, "even": 448.0, "ceil": 480.0, "rceil": 480.0}


@pytest.mark.parametrize(
    ("name", "emax"),
    [("mxfp8_e5m2", 15), ("mxfp8_e4m3", 8), ("mxfp6_e3m2", 4), ("mxfp6_e2m3", 2), ("mxfp4", 2),
     ("mxint8", 0)],
)  # fmt: skip
def test_elements_have_the_emax_of_ocp_mx(name, emax):
    fmt = format(name)
    assert fmt.element.emax == emax
    assert (fmt.block, fmt.scale, fmt.rule) == (Block(1, 32), format("e8m0"), ScaleRule.FLOOR)
    _, scales = encode(np.full(32, 1.0), name)
    assert decode(scales, "e8m0") == 2.0**-emax


def test_an_mxfp4_block_worked_out_by_hand():
    # amax 5 = 1.25 * 2^2, so the scale is 2^0 (code 127); elements are multiples of 1/2 up to 6.
    x = np.zeros(32)
    x[:10] = [5.0, -5.0, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, -0.1]
    codes, scales = encode(x, "mxfp4")
    assert scales.tolist() == [127]
    assert codes[:10].tolist() == [
        0b0110,
        0b1110,
        0,
        0b0001,
        0b0010,
        0b0010,
        0b0100,
        0b0100,
        0b0110,
        0b1000,
    ]
    want = [4.0, -4.0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, -0.0]
    np.testing.assert_array_equal(decode(codes, "mxfp4", scales=scales)[:10], want)


def test_an_nvfp4_tensor_worked_out_by_hand():
    # Tensor scale 2688 / (448 * 6) = 1; block scales amax / 6 in e4m3: 448, and 10/6 -> 1.625.
    x = np.zeros((1, 32))
    x[0, 0], x[0, 16], x[0, 17] = 2688.0, 10.0, -4.1
    codes, (scales, tensor) = encode(x, "nvfp4")
    assert tensor == 1.0
    assert decode(scales, "e4m3").tolist() == [[448.0, 1.625]]
    assert decode(codes, "e2m1")[0, [0, 16, 17]].tolist() == [6.0, 6.0, -3.0]
    assert quantize(x, "nvfp4")[0, [0, 16, 17]].tolist() == [2688.0, 9.75, -4.875]


def test_deepseek_tiles_divide_amax_by_448():
    x = np.random.default_rng(8).standard_normal((256, 256)).astype(np.float32)
    _, scales = encode(x, "e4m3:128x128")
    amax = np.abs(x).reshape(2, 128, 2, 128).max(axis=(1, 3))
    np.testing.assert_array_equal(scales, amax / np.float32(448))
    _, scales = encode(np.zeros((2, 128)), "e4m3:1x128:amax_min=0.0001")
    assert scales.tolist() == [[np.float32(1e-4 / 448)]] * 2


def test_power_of_two_scales_are_the_reciprocal_of_max_over_amax_rounded_down():
    """What Float8BlockScaling and DeepSeek-V3 write: the two roundings are one and the same."""
    for fmt in ("e4m3:1x1:pow2", "e5m2:1x1:pow2", "int8:1x1:pow2"):
        found, element = format(fmt), element_of(format(fmt))
        assert found.rule is ScaleRule.RCEIL
        amax = np.abs(testing.specimens("fp32", np.float32, per_binade=4)[:-2])
        amax = amax[(amax > 2.0**-100) & (amax < 2.0**120)]
        _, scales = encode(amax[:, None], fmt)
        for number, scale in zip(amax.tolist(), scales.ravel().tolist(), strict=True):
            ratio = Fraction(element.max) / Fraction(number)
            down = ratio.numerator.bit_length() - ratio.denominator.bit_length()
            down -= Fraction(2) ** down > ratio
            assert scale == 2.0**-down


# Integers.


def test_integer_conventions():
    x = np.array([[-1.0, 0.25, 1.0, -1.0]])
    codes, scales = encode(x, "int8:row")
    assert (codes.view(np.int8).tolist(), scales) == ([[-127, 32, 127, -127]], np.float32(1 / 127))
    codes, scales = encode(127.5 * x, "int8:row:full:span")  # PyTorch's symmetric: amax / 127.5
    assert scales == 1
    assert codes.view(np.int8).tolist() == [[-128, 32, 127, -128]]
    codes, (scales, zero_points) = encode(np.array([[0.0, 1.0, 2.55]]), "int8:row:full:affine")
    assert codes.view(np.int8).tolist() == [[-128, -28, 127]]
    assert (scales, zero_points) == (np.float32(0.01), -128)
    assert zero_points.dtype == np.int8


def test_zero_is_exact_with_a_zero_point_and_so_are_ranges_on_one_side():
    rng = np.random.default_rng(10)
    for low, high in ((-1, 3), (5, 9), (-9, -5), (0, 1), (-1e-30, 1e-3)):
        x = rng.uniform(low, high, (4, 100))
        x[:, 7] = 0.0
        got = quantize(x, "int8:row:full:affine")
        assert (got[:, 7] == 0).all()
        reach = np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)
        assert (np.abs(got - x).max(1) <= reach / 255 * 1.001).all()


def test_mxint8_is_fixed_point_with_six_fraction_bits():
    x = np.zeros((2, 32))
    x[0, :4], x[1, :3] = [1.5, -1.999, 1.999, 2.0**-7 * 1.01], [-1.0, 1.0, 0.99]
    codes, scales = encode(x, "mxint8")
    assert scales.ravel().tolist() == [127, 127]
    assert codes.view(np.int8)[0, :4].tolist() == [96, -128, 127, 1]
    assert quantize(x, "mxint8")[0, :3].tolist() == [1.5, -2.0, 127 / 64]
    assert (format("mxint8").max, format("mxint8").min) == (127 / 64, -2.0)


# Libraries.

STORED = Path(__file__).parent / "data" / "torchao018_blocks.npz"


def test_torchao_s_blocks_code_for_code():
    """All four rules on ordinary blocks and amax just below, at and above powers of two.

    Made with torchao 0.18.0 and PyTorch 2.13; for tiny blocks, which torchao gets wrong, see
    test_block_traps.py.
    """
    with np.load(STORED) as stored:
        x = stored["x"]
        for key in stored.files:
            if "/" in key and not key.startswith("nvfp4"):
                name, what = key.split("/")
                codes, scales = encode(x, name.replace("-", ":"))
                np.testing.assert_array_equal({"codes": codes, "scales": scales}[what], stored[key])
        tensor = stored["nvfp4/tensor"]
        codes, scales = encode(x, "e2m1:1x16:e4m3+fp32:scale_min=0.015625")
        np.testing.assert_array_equal(codes, stored["nvfp4/codes"])
        np.testing.assert_array_equal(scales.blocks, stored["nvfp4/scales"])
        assert scales.tensor == tensor


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchao_itself_on_other_numbers():
    torch = pytest.importorskip("torch")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    config = pytest.importorskip("torchao.prototype.mx_formats.config")
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    dtypes = {
        "mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2,
        "mxfp6_e3m2": "fp6_e3m2", "mxfp6_e2m3": "fp6_e2m3", "mxfp4": torch.float4_e2m1fn_x2,
    }  # fmt: skip
    rng = np.random.default_rng(15)
    x = rng.standard_normal((2000, 64)) * 10.0 ** rng.integers(-30, 30, (2000, 1))
    x[1000:] = np.ldexp(1.0, rng.integers(-20, 20, (1000, 64))) * (1 - 2.0**-24)
    x = x.astype(np.float32)
    for name, dtype in dtypes.items():
        for mode in config.ScaleCalculationMode:
            scales, elements = mx.to_mx(torch.from_numpy(x), dtype, 32, mode)
            if name == "mxfp4":
                elements = kernels.unpack_uint4(elements)
            codes, ours = encode(x, f"{name}:{mode.name.lower()}")
            np.testing.assert_array_equal(ours, scales.view(torch.uint8).numpy())
            np.testing.assert_array_equal(codes.ravel(), elements.view(torch.uint8).numpy().ravel())


def transformer_engine(x):
    """Return NVFP4 block scales and elements in TE's order of float32 operations.

    Transformer Engine's reference quantizer, written anew: s_enc = 448 * 6 / amax of the tensor;
    a block scale is e4m3(amax_b * (s_enc * 1/6)); an element e2m1(x * 1/(scale * 1/s_enc)).
    """
    one, rows = np.float32(1), x.reshape(-1, 16)
    encode_scale = np.float32(448 * 6) / np.abs(x).max()
    scales = quantize(
        np.abs(rows).max(1) * (encode_scale * (one / np.float32(6))), "e4m3", overflow="saturate"
    )
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.minimum(one / (scales * (one / encode_scale)), np.finfo(np.float32).max)
        return scales, quantize(np.clip(rows * factor[:, None], -6, 6), "e2m1")


@pytest.mark.parametrize("spread", [0, 8])
def test_nvfp4_is_transformer_engine_s_away_from_ties(spread):
    rng = np.random.default_rng(11)
    x = rng.standard_normal(1 << 16) * 10.0 ** rng.uniform(-spread, spread, 1 << 16)
    x = x.astype(np.float32)
    codes, (scales, _) = encode(x, "nvfp4")
    their_scales, their_elements = transformer_engine(x)
    np.testing.assert_array_equal(decode(scales, "e4m3"), their_scales)
    np.testing.assert_array_equal(decode(codes, "e2m1"), their_elements.ravel())
    assert spread == 0 or (their_scales == 0).any()  # a scale that underflows is zero there too


@pytest.mark.parametrize("name", ["nvfp4:inverse", "transformer-engine"])
def test_nvfp4_is_transformer_engine_s_at_ties_too_where_its_factors_are_multiplied(name):
    """bf16 data, whose quotients by amax / 2688 are often midpoints: 1 in 1000 divides otherwise."""
    rng, differing = np.random.default_rng(14), 0
    for _ in range(20):
        x = rng.standard_normal(4096).astype(np.float32)
        x = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        their_scales, their_elements = transformer_engine(x)
        if name == "nvfp4:inverse":
            codes, (scales, _) = encode(x, name)
        else:
            codes, (scales, _) = encode(x, "nvfp4", profile=name)
        np.testing.assert_array_equal(decode(scales, "e4m3"), their_scales)
        np.testing.assert_array_equal(decode(codes, "e2m1"), their_elements.ravel())
        differing += (decode(encode(x, "nvfp4")[0], "e2m1") != their_elements.ravel()).sum()
    assert differing > 10


def test_gfloat_rounds_blocks_to_the_same_values():
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    names = {
        "mxfp8_e4m3": "format_info_mxfp8_e4m3", "mxfp8_e5m2": "format_info_mxfp8_e5m2",
        "mxfp6_e3m2": "format_info_mxfp6_e3m2", "mxfp6_e2m3": "format_info_mxfp6_e2m3",
        "mxfp4": "format_info_mxfp4_e2m1", "mxint8": "format_info_mxint8",
    }  # fmt: skip
    x = np.random.default_rng(12).standard_normal((6, 32)) * 10.0 ** np.arange(-18, 18, 6)[:, None]
    for name, theirs in names.items():
        info = getattr(formats, theirs)
        want = [gfloat.quantize_block(info, row, gfloat.compute_scale_amax) for row in x]
        np.testing.assert_array_equal(quantize(x, name), want)


def test_ml_dtypes_reads_our_codes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(13).standard_normal((8, 64)) * 10.0 ** np.arange(-16, 16, 4)[:, None]
    for name, dtype in (
        ("mxfp4", "float4_e2m1fn"),
        ("mxfp8", "float8_e4m3fn"),
        ("mxfp6", "float6_e2m3fn"),
    ):
        codes, scales = encode(x, name)
        elements = codes.view(getattr(ml_dtypes, dtype)).astype(np.float64).reshape(8, 2, 32)
        powers = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        np.testing.assert_array_equal(
            (elements * powers[..., None]).reshape(8, 64), quantize(x, name)
        )
