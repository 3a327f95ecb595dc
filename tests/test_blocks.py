"""Scaled formats on arrays: against the specification on fractions, published numbers, libraries."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim import testing
from precsim.formats import blocks, exact, exact_blocks, tiling
from precsim.formats.codes import decode, encode
from precsim.formats.modes import Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.formats.scaled import Block

MX = [f"{name}:{rule}" for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3",
      "mxfp4", "mxint8") for rule in ("floor", "ceil", "even", "rceil")]  # fmt: skip
OTHERS = [
    "nvfp4", "nvfp4:4x4", "nvfp4:scale_min=0.015625", "e2m1:1x16:e4m3", "int8", "int8:row",
    "int8:row:full:affine", "int4:column:affine", "int4:1x2:e4m3:affine", "int8:row:e8m0:max:affine", "int8:row:full:span", "int8:1x4:floor:full",
    "e4m3:1x5", "e4m3:3x4", "e4m3:row:pow2", "e4m3:1x4:amax_min=0.0001", "e5m2fnuz:1x8:e8m0",
    "bf16:row", "fp16:1x4:bf16", "fp32:row", "mxfp8:3x1:even", "mxfp4:1x7@0", "mxfp4:max",
    "e4m3:tensor:inverse", "e5m2:row:inverse:amax_min=1e-12", "e4m3:3x4:inverse", "int8:row:inverse",
    "e4m3:delayed", "e2m1:delayed", "nvfp4:inverse", "nvfp4:4x4:inverse",
    "int8:row:bf16:inverse", "e4m3:1x4:fp16:inverse",
]  # fmt: skip


def specified(x, fmt, rounding="nearest", words=None):
    """Round an array block by block with fractions, and each value once to x's own dtype."""
    out, parts = np.empty_like(x), list(exact_blocks.members(x.shape, fmt.block))
    finite = [
        float(x[i]) for part in parts if np.isfinite([x[i] for i in part]).all() for i in part
    ]
    tensor = exact_blocks.tensor_scale(finite, fmt)
    for part in parts:
        numbers = [float(x[i]) for i in part]
        draws = None if words is None else [Fraction(2 * int(words[i]) + 1, 2**33) for i in part]
        rounded = exact_blocks.round_block(numbers, fmt, rounding, draws, tensor)
        for i, value in zip(part, rounded.values, strict=True):
            wide = isinstance(value, float) or x.dtype == np.float64
            out[i] = float(value) if wide else exact.round(value, "fp32")
    return out


def specimens(fmt, dtype, shape, seed):
    """Return arrays of every sort that has broken a block format somewhere."""
    rng, element = np.random.default_rng(seed), fmt.element
    normal = rng.standard_normal(shape)
    power = np.ldexp(1.0, rng.integers(-10, 10, shape))
    steps = rng.integers(0, 4 * 2**element.man_bits, shape) + 0.5
    binades = rng.integers(element.emin, max(element.emin, element.emax) + 1, shape)
    ties = np.minimum(np.ldexp(steps, binades - element.man_bits), element.max)
    ties.flat[::7] = element.max
    special = rng.choice([0.0, -0.0, math.inf, -math.inf, math.nan], shape)
    wide = normal * 10.0 ** rng.integers(-44, 38, shape)
    wider = normal * 10.0 ** rng.integers(-320, 307, shape) if dtype == np.float64 else wide
    with np.errstate(all="ignore"):
        return [
            np.asarray(x, dtype)
            for x in (
                normal,
                power * (1 - 2.0**-24 * rng.integers(0, 2, shape)),  # just below a power of two
                power * (1 + 2.0**-23 * rng.integers(0, 2, shape)),
                ties * np.float32(rng.random() + 0.5) * np.sign(normal),  # times any scale
                rng.integers(-40, 40, shape) / 8,
                np.where(rng.random(shape) < 0.05, special, normal),
                rng.choice([0.0, -0.0, 1e-45, -1e-45, 2.0**127, 1.0, -3.4e38], shape),
                normal * 2.0**-140,
                normal * 2.0**125,
                wide,
                wider,
                np.zeros(shape),
            )
        ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MX + OTHERS)
def test_every_value_and_every_code_is_what_the_specification_says(name, dtype):
    fmt = format(name)
    for x in specimens(fmt, dtype, (2, 37), seed=len(name)):
        want = specified(x, fmt)
        testing.assert_same(quantize(x, fmt), want, x, name)
        codes, scales = encode(x, fmt)
        testing.assert_same(decode(codes, fmt, dtype, scales), want, x, f"codes of {name}")


@pytest.mark.parametrize("rounding", [*Rounding, "stochastic_a3", "stochastic_equal"])
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8", "nvfp4", "int8:row", "int4:1x7:affine"])
def test_every_rounding_mode_works_inside_blocks(name, rounding):
    fmt = format(name)
    for dtype in (np.float32, np.float64):
        for x in specimens(fmt, dtype, (3, 11), seed=1):
            words = np.random.default_rng(2).integers(0, 2**32, x.shape, dtype=np.uint32)
            random = words if "stochastic" in rounding else None
            want = specified(x, fmt, rounding, random)
            testing.assert_same(quantize(x, fmt, rounding, random=random), want, x, name)


@given(st.sampled_from(MX + OTHERS), st.data())
def test_any_shape_of_any_numbers_is_rounded_as_specified(name, data):
    fmt = format(name)
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    ranks = (1, 2, 3) if fmt.block.axis == 0 else (0, 1, 2, 3)
    shape = tuple(data.draw(st.integers(0, 6)) for _ in range(data.draw(st.sampled_from(ranks))))
    numbers = data.draw(st.lists(testing.doubles(dtype), min_size=math.prod(shape), max_size=216))
    x = np.resize(np.array(numbers, dtype), shape)
    testing.assert_same(np.asarray(quantize(x, fmt)), specified(x, fmt), x, name)


@pytest.mark.parametrize("name", [*MX, "nvfp4", "int8:row", "e4m3:1x128", "int8:1x16:affine"])
def test_the_carrier_does_not_matter_to_what_is_stored(name):
    for x in specimens(format(name), np.float32, (4, 40), seed=3):
        (codes, scales), wide = encode(x, name), encode(x.astype(np.float64), name)
        np.testing.assert_array_equal(codes, wide[0])
        parts = (scales, wide[1]) if isinstance(scales, tuple) else ([scales], [wide[1]])
        for part, same in zip(*parts, strict=True):
            np.testing.assert_array_equal(part, same)
        with np.errstate(over="ignore"):
            again = quantize(x.astype(np.float64), name).astype(np.float32)
        testing.assert_same(quantize(x, name), again, x)


@pytest.mark.parametrize("name", [n for n in MX if "mxint8" not in n])
def test_rounding_twice_is_rounding_once_with_power_of_two_scales(name):
    for x in specimens(format(name), np.float64, (3, 64), seed=9):
        once = quantize(x, name)
        np.testing.assert_array_equal(quantize(once, name), once)


@pytest.mark.parametrize(
    "name", ["nvfp4", "nvfp4:16x16", "e4m3:1x16:e4m3+fp32", "e2m3:1x16:bf16+fp32", "e4m3:1x16"]
)
@pytest.mark.parametrize("power", [0, 60, -60, -110])
def test_float32_quotients_beside_midpoints_are_decided_exactly(name, power):
    """Nearly every element is a midpoint times its scale, rounded to float32, or next to that."""
    rng, fmt = np.random.default_rng(abs(power)), format(name)
    element = fmt.element
    x = np.ldexp(rng.standard_normal((48, 256)), power).astype(np.float32)
    x[:, ::16] *= 8  # the amax of every block is here
    codes, _ = encode(np.ones_like(x), name)
    scales = decode(np.full_like(codes, encode(1.0, element)), name, scales=encode(x, name)[1])
    steps = rng.integers(0, 2 * 2**element.man_bits, x.shape) + 0.5
    binades = rng.integers(element.emin, element.emax + 1, x.shape)
    near = (np.ldexp(steps, binades - element.man_bits) * scales).astype(np.float32)
    near = np.nextafter(near, near * rng.choice([0, 1, 2], x.shape).astype(np.float32))
    replaced = (near < 0.99 * element.max * scales) & (np.arange(256) % 16 != 0)
    x = np.where(replaced, near * np.sign(x), x)
    assert replaced.mean() > 0.7
    for rounding in ("nearest", "nearest_away"):
        want = quantize(x.astype(np.float64), name, rounding).astype(np.float32)
        testing.assert_same(quantize(x, name, rounding), want, x, name)


# The layout of blocks.


@pytest.mark.parametrize("block", ["1x4@0", "1x4@1", "1x4@2", "1x3@-1", "row@0", "column", "4x1"])
@pytest.mark.parametrize("element", ["e4m3", "int8", "e2m1"])
def test_blocks_along_any_axis_are_blocks_along_the_last_one_moved(block, element):
    x = np.random.default_rng(0).standard_normal((6, 9, 7))
    axis = Block.parse(block).axis
    moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    width = Block.parse(block).width
    along_last = f"1x{width}" if width else "row"
    want = np.moveaxis(quantize(moved, f"{element}:{along_last}"), -1, axis)
    np.testing.assert_array_equal(quantize(x, f"{element}:{block}"), want)


@pytest.mark.parametrize(
    ("block", "shape", "grid"),
    [("1x32", (4, 100), (4, 4)), ("32x1", (100, 4), (4, 4)), ("128x128", (200, 300), (2, 3)),
     ("2x3", (5, 4, 7), (5, 2, 3)), ("row", (4, 5), (4, 1)), ("column", (4, 5), (1, 5)),
     ("tensor", (4, 5), (1, 1)), ("1x4@0", (9, 2, 2), (3, 2, 2)), ("row@0", (9, 2), (1, 2)),
     ("1x32", (70,), (3,)), ("32x1", (70,), (3,)), ("column", (70,), (1,)), ("4x8", (20,), (3,)),
     ("1x32", (), ()), ("128x128", (), ()), ("row", (0, 3), (0, 1)), ("row", (3, 0), (3, 1)),
     ("1x32", (3, 0), (3, 0)), ("128x128", (0, 5), (0, 1)), ("tensor", (0, 5), (1, 1))],
)  # fmt: skip
def test_scales_have_the_shape_of_the_grid_of_blocks(block, shape, grid):
    name = f"e4m3:{block}:e8m0"
    x = np.ones(shape)
    codes, scales = encode(x, name)
    assert (codes.shape, scales.shape) == (shape, grid)
    assert quantize(x, name).shape == shape
    np.testing.assert_array_equal(decode(codes, name, scales=scales), x)
    codes, scales = encode(x, name, "stochastic", random=0)
    np.testing.assert_array_equal(decode(codes, name, scales=scales), x)


def test_what_lies_in_other_blocks_does_not_matter():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((7, 50)) * 10.0 ** rng.integers(-9, 9, (7, 50))
    for name in ("mxfp8_e4m3", "e4m3:1x16", "int8:1x7", "mxfp6:3x1", "e4m3:2x16", "int8:row"):
        fmt, whole = format(name), quantize(x, name)
        for part in exact_blocks.members(x.shape, fmt.block):
            index = tuple(np.array(part).T)
            alone = quantize(x[index], f"{fmt.spelled}".replace(str(fmt.block), "tensor"))
            np.testing.assert_array_equal(whole[index], alone)


@pytest.mark.parametrize("size", [64, 1000, 4096])
@pytest.mark.parametrize(
    "name", ["mxfp4", "nvfp4", "int8", "e4m3:24x40", "int8:row:affine", "e4m3:7x1"]
)
def test_the_slabs_in_which_the_work_is_done_do_not_show(name, size, monkeypatch):
    x = np.random.default_rng(5).standard_normal((50, 70)).astype(np.float32)
    words = np.random.default_rng(6).integers(0, 2**32, x.shape, dtype=np.uint32)
    want = quantize(x, name), quantize(x, name, "stochastic", random=words)
    monkeypatch.setattr(tiling, "BLOCK_BYTES", size)
    np.testing.assert_array_equal(quantize(x, name), want[0])
    np.testing.assert_array_equal(quantize(x, name, "stochastic", random=words), want[1])


@pytest.mark.host_only
def test_the_number_of_steps_does_not_grow_with_the_number_of_blocks(monkeypatch):
    calls = []
    rounds = blocks.round_into
    monkeypatch.setattr(blocks, "round_into", lambda *args: calls.append(1) or rounds(*args))
    x = np.ones((64, 512), np.float32)
    for block in ("1x32", "1x2", "2x1", "2x2", "row", "1x1"):
        for scale, steps in (("e8m0", 1), ("fp32", 2)):  # one slab, and scales that round
            calls.clear()
            quantize(x, f"e2m1:{block}:{scale}")
            assert len(calls) == steps, block


def test_every_memory_layout_and_out_are_served():
    x = np.random.default_rng(7).standard_normal((33, 40)).astype(np.float32)
    want = quantize(x, "mxfp8")
    np.testing.assert_array_equal(quantize(np.asfortranarray(x), "mxfp8"), want)
    np.testing.assert_array_equal(quantize(x.T, "mxfp8:32x1"), want.T)
    np.testing.assert_array_equal(quantize(x[::-1, :], "mxfp8"), want[::-1])
    np.testing.assert_array_equal(encode(x.T, "mxfp8:32x1")[0], encode(x, "mxfp8")[0].T)
    for name, result in (("mxfp8", want), ("mxfp8:5x7", quantize(x, "mxfp8:5x7"))):
        y = x.copy()
        assert quantize(y, name, out=y) is y
        np.testing.assert_array_equal(y, result)


@pytest.mark.parametrize(
    ("shape", "block", "count"),
    [((6, 64), "1x32", 1), ((5, 70), "1x32", 2), ((50, 70), "24x40", 4), ((2, 48, 70), "24x40", 2),
     ((9, 7), "4x1", 2)],
)  # fmt: skip
def test_ragged_ends_are_parts_of_their_own_and_together_they_are_the_array(shape, block, count):
    layout = tiling.Tiling.of(shape, Block.parse(block))
    x = np.zeros(shape, np.int64)
    assert layout.divides
    parts = layout.parts(x)
    assert len(parts) == count
    for number, part in enumerate(parts):
        part += number + 1  # they are views, and no value is in two of them
    assert set(np.unique(x)) == set(range(1, count + 1))
    assert sum(part.size for part in parts) == x.size


def test_a_stack_with_short_blocks_below_is_not_divided():
    assert not tiling.Tiling.of((2, 50, 70), Block.parse("24x40")).divides
