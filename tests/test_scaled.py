"""Scaled formats as data: blocks, names, and what cannot be."""

import itertools
import math

import numpy as np
import pytest

from precsim.formats.codes import Affine, TwoLevel, decode, encode
from precsim.formats.quantize import quantize
from precsim.formats.registry import FORMATS, format
from precsim.formats.scaled import COLUMN, FP32, ROW, TENSOR, Block, Scaled, ScaleRule

MX = [f"{name}:{rule}" for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3",
      "mxfp4", "mxint8") for rule in ("floor", "ceil", "even", "rceil")]  # fmt: skip
OTHERS = [
    "nvfp4", "nvfp4:4x4", "nvfp4:scale_min=0.015625", "e2m1:1x16:e4m3", "int8", "int8:row",
    "int8:row:full:affine", "int4:column:affine", "int8:row:full:span", "int8:1x4:floor:full",
    "e4m3:1x5", "e4m3:3x4", "e4m3:row:pow2", "e4m3:1x4:amax_min=0.0001", "e5m2fnuz:1x8:e8m0",
    "bf16:row", "fp16:1x4:bf16", "fp32:row", "mxfp8:3x1:even", "mxfp4:1x7@0", "mxfp4:max",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted({*FORMATS, *MX, *OTHERS, "e4m3:1x128", "nvfp4:16x1"}))
def test_names_lead_back_to_the_format(name):
    found = format(name)
    assert format(found.name) == found
    assert format(found.name).name == found.name
    if isinstance(found, Scaled):
        assert format(found.spelled) == found
        assert f"element {found.element!r}" in repr(found)


@pytest.mark.parametrize(
    ("name", "known"),
    [("e2m1:1x32:e8m0", "mxfp4"), ("e4m3:e8m0:1x32:floor", "mxfp8_e4m3"), ("mxfp8", "mxfp8_e4m3"),
     ("e2m1:1x16:e4m3+fp32:scale_min=0", "nvfp4"), ("int8:tensor", "int8"), ("MXFP4:row", "mxfp4:row"),
     ("e2m1:32x1:e8m0", "mxfp4:32x1"), ("mxfp4:pow2", "mxfp4:rceil"), ("e4m3:row@-2", "e4m3:column"),
     ("int8_q6:1x32:e8m0:full", "mxint8"), ("nvfp4:fp32", "e2m1:1x16"), ("e4m3:1x1@-2", "e4m3:1x1@-2"),
     ("mxfp8:e5m2:max", "e4m3:1x32:e5m2"), ("int8:1x32@0", "int8:1x32@0")],
)  # fmt: skip
def test_one_format_has_one_name(name, known):
    assert format(name).name == known


def test_blocks_are_data():
    assert (Block.parse("tensor"), Block.parse("row"), Block.parse("column")) == (
        TENSOR,
        ROW,
        COLUMN,
    )
    assert Block(32, 1) == Block.parse("32x1") == Block(1, 32, -2)
    assert Block.parse("1x0") is Block.parse("0x0") is Block.parse("x") is None
    for text in ("tensor", "row", "column", "1x32", "32x1", "128x64", "1x32@0", "row@-3"):
        assert str(Block.parse(text)) == text
        assert Block.parse(text).transposed().transposed() == Block.parse(text)
    assert str(Block.parse("128x64").transposed()) == "64x128"
    assert Scaled(format("e4m3"), ROW) == format("e4m3:row")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: format("e4m3:1x0"), "unknown word '1x0'.*expected a block.*a scale format.*a rule"),
        (lambda: format("e4m3:row:column"), "says block twice"),
        (lambda: format("mxfp4:stochastic"), "unknown word 'stochastic' in 'mxfp4:stochastic'"),
        (lambda: format("e4m3:row:e2m1"), "a scale must have a NaN.*fit into fp32"),
        (lambda: format("fp64:row"), "fp64 has more than 24 significand bits"),
        (lambda: format("e8m0:row"), "elements have a sign"),
        (lambda: format("e4m3:full"), "only integers have a full range"),
        (lambda: format("mxint8:affine"), "only whole numbers .*have a zero point"),
        (lambda: format("int8:affine:rceil"), "a zero point needs the rule 'max'"),
        (lambda: format("nvfp4:floor"), "two levels need the rule 'max'"),
        (lambda: format("e2m1:1x16:e4m3:scale_min=0.001"), "scale_min must be a value of e4m3"),
        (lambda: format("mxfp4:scale_min=0"), "scale_min must be a value of e8m0"),
        (lambda: format("int8:amax_min=-1"), "unknown word 'amax_min=-1'"),
        (lambda: Scaled(FP32, amax_min=math.inf), "amax_min must be a finite number, 0 or more"),
        (lambda: Block(3, 0), "expected a tensor, a row or column, 1xN along any axis, or a tile"),
        (lambda: Block(4, 4, 0), "or a tile such as 128x128"),
        (lambda: ScaleRule("down"), "unknown scalerule 'down': expected one of max, span, floor"),
        (lambda: quantize(np.ones(3), "mxfp4:1x32@1"), "axis 1, which an array of 1 axes has not"),
        (lambda: quantize(np.ones((3, 3)), "mxfp4:1x32@-3"), "an array of 2 axes has not"),
        (lambda: decode([1], "mxfp4", scales=np.array([1, 2], "u1")), r"shape \(1,\) for \(1,\)"),
        (lambda: decode([1], "nvfp4", scales=1.0), "expected TwoLevel"),
        (lambda: decode([1], "int8:affine", scales=1.0), "expected Affine"),
        (lambda: decode([1], "mxfp4", scales=1.0), "integer codes of e8m0"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_cannot_be_says_what_could(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_scales_come_with_their_second_part():
    x = np.random.default_rng(14).standard_normal((2, 40))
    codes, scales = encode(x, "nvfp4")
    assert isinstance(scales, TwoLevel)
    assert (scales.blocks.dtype, scales.tensor.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(
        decode(codes, "nvfp4", scales=tuple(scales)), quantize(x, "nvfp4")
    )
    _, scales = encode(x, "e2m1:1x16:e4m3+bf16")
    assert scales.tensor.dtype == np.uint16
    codes, scales = encode(x, "int8:row:full:affine")
    assert isinstance(scales, Affine)
    assert format("nvfp4").tensor_scale == FP32
