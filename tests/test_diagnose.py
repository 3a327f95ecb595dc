"""What a scaled format does to its blocks, counted; and blocks along the contraction of a matmul."""

import math

import numpy as np
import pytest

import precsim as ps
from precsim.engine import ops
from precsim.formats.diagnose import diagnose
from precsim.formats.quantize import quantize
from precsim.formats.registry import format


def test_counts_of_blocks_made_by_hand():
    x = np.zeros((5, 32))
    x[0, :4] = [7.5, -7.5, 5.0, 0.1]  # scale 1: 7.5 is clipped to 6, 0.1 flushed
    x[1, :3] = [4.0, 0.2, -0.2]  # scale 1: two flushed
    x[2, :2] = [1.0, math.nan]
    x[3, 0] = 2.0**-140  # far below the smallest scale
    found = diagnose(x, "mxfp4")
    assert found.scale.ravel()[[0, 1, 3]].tolist() == [1.0, 1.0, 2.0**-127]
    assert np.isnan(found.scale[2, 0])
    assert found.clipped.ravel().tolist() == [2, 0, 0, 0, 0]
    assert found.flushed.ravel().tolist() == [1, 2, 0, 1, 0]
    assert found.nonzero.ravel().tolist() == [4, 3, 2, 1, 0]
    assert found.wasted.ravel().tolist() == [0, 0, 0, 15, 0]
    assert found.amax.ravel()[[0, 1, 3, 4]].tolist() == [7.5, 4.0, 2.0**-140, 0.0]
    assert found.scale_histogram == {-127: 2, 0: 2}
    assert (found.blocks, found.lost) == (5, 1)
    assert str(found).startswith("mxfp4: 5 blocks, 20.0% clip (at most 2 values of one); 40.0% of")


def test_what_lies_half_a_step_beyond_the_largest_is_rounded_and_not_clipped():
    """The largest of e2m1 is 6, its step there 2; the block's scale is 1, by OCP's floor rule."""
    counts = [int(ps.diagnose([x, -x], "mxfp4").clipped.sum()) for x in (6.5, 7.0, 7.0001, 7.5)]
    assert counts == [0, 0, 2, 2]


def test_unused_binades_are_counted_where_the_quotient_has_no_float64():
    least = (
        5e-324  # beside a scale of 2^49, which amax_min sets; the largest of e2m1 is 2^2 and more
    )
    (found,) = diagnose([least], f"e2m1:tensor:e8m0:max:amax_min={6.0 * 2**49}").wasted.ravel()
    assert found == 2 + 49 + 1074


def test_rules_trade_clipping_for_unused_binades():
    x = np.random.default_rng(0).standard_normal((256, 64))
    floor, ceil, rceil = (diagnose(x, f"mxfp4:{rule}") for rule in ("floor", "ceil", "rceil"))
    assert (floor.clipped > 0).mean() > 0.1
    assert ceil.clipped.sum() == rceil.clipped.sum() == 0
    assert floor.wasted.sum() == 0
    assert (ceil.wasted == 1).all()
    assert 0 < rceil.wasted.mean() < 1
    assert floor.flushed.sum() < rceil.flushed.sum() < ceil.flushed.sum()


def test_one_outlier_flushes_the_rest_of_its_block():
    x = np.ones((2, 32))
    x[0, 0] = 1000.0
    for name, flushed in (("mxfp4", [31, 0]), ("int8:row", [31, 0]), ("mxfp8_e5m2", [0, 0])):
        x[0, 1:] = 1e-1 if name == "int8:row" else 1.0
        assert diagnose(x, name).flushed.ravel().tolist() == flushed


@pytest.mark.parametrize("name", ["nvfp4", "int8:row:affine", "e4m3:128x128", "mxint8:1x7", "int8"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (40,), (3, 40), (2, 3, 40)])
def test_every_shape_is_diagnosed(name, shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = diagnose(x, name)
    grid = found.scale.shape
    for part in (found.amax, found.clipped, found.flushed, found.wasted, found.nonzero):
        assert part.shape == grid
    assert found.nonzero.sum() == x.size
    assert found.flushed.sum() == np.count_nonzero(quantize(x, name) == 0)
    assert found.format.name in str(found)


def test_scales_that_underflow_flush_and_do_not_clip():
    x = np.zeros((1, 32))
    x[0, 0], x[0, 16:] = 2688.0, 1e-4
    found = diagnose(x, "nvfp4")
    assert (found.scale.tolist(), found.flushed.tolist()) == ([[448.0, 0.0]], [[0, 16]])
    assert found.clipped.sum() == 0


def test_a_format_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"e4m3 has no blocks: .* such as e4m3:1x32"):
        diagnose([1.0], "e4m3")


@pytest.mark.parametrize(
    ("inputs", "left", "right"),
    [("mxfp8_e4m3", "mxfp8_e4m3", "mxfp8_e4m3:32x1"), ("nvfp4", "nvfp4", "nvfp4:16x1"),
     ("e4m3:8x16", "e4m3:8x16", "e4m3:16x8"), ("int8:row", "int8:row", "int8:column")],
)  # fmt: skip
def test_blocks_of_a_matmul_run_along_its_contraction(inputs, left, right):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((10, 40)), rng.standard_normal((40, 12))
    policy = ps.Policy(rules=(ps.Rule(op="matmul", inputs=inputs),))
    assert ps.Policy.parse(str(policy)) == policy
    with ps.using(policy):
        product = ops.matmul(ps.tensor(a), ps.tensor(b))
    want = quantize(quantize(a, "fp32"), left) @ quantize(quantize(b, "fp32"), right)
    np.testing.assert_array_equal(product.numpy(), quantize(want, "fp32"))
    assert quantize(b, right).T.tolist() == quantize(b.T.copy(), left).tolist()
    assert format(right) == format(left).transposed()
