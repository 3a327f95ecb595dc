"""The device's block scaling: equal to the specification on fractions, and to NumPy's arrays."""

import cupy_stand_in
import numpy as np
import pytest
from test_blocks import MX, OTHERS, specified, specimens

from precsim import testing
from precsim.backend import cupy as device
from precsim.backend import one_pass_blocks, to_numpy
from precsim.formats.blocks import quantize_into
from precsim.formats.modes import Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.formats.tiling import Tiling

RARE = [
    "int8:affine", "int8:row:affine", "int4:1x5:affine", "int8:3x4:bf16:affine",
    "int8:row:affine:scale_min=0.0", "nvfp4:tensor", "nvfp4:tensor:inverse",
    "int8:1x4:e4m3:scale_min=0.0",
]  # fmt: skip
NAMES = MX + OTHERS + RARE
SOME = [name for name in MX + OTHERS if name not in MX[1::2]][::2] + RARE
MODES = [*Rounding, "stochastic_a3", "stochastic_b8", "stochastic_equal"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_what_the_specification_says(cupy, name, dtype):
    fmt = format(name)
    for x in specimens(fmt, dtype, (3, 13), seed=len(name)):
        got = to_numpy(quantize(cupy.asarray(x), fmt))
        testing.assert_same(got, specified(x, fmt), x, name)


@pytest.mark.parametrize("rounding", MODES, ids=str)
@pytest.mark.parametrize("name", SOME)
def test_it_has_the_bits_of_the_arrays_in_every_mode(cupy, name, rounding):
    fmt = format(name)
    for dtype in (np.float32, np.float64):
        for x in specimens(fmt, dtype, (5, 70), seed=len(name)):
            words = np.random.default_rng(2).integers(0, 2**32, x.shape, dtype=np.uint32)
            random = words if "stochastic" in str(rounding) else None
            there = None if random is None else cupy.asarray(words)
            got = to_numpy(quantize(cupy.asarray(x), fmt, rounding, random=there))
            want = quantize(x, fmt, rounding, random=random)
            testing.assert_same(got, want, x, name)


@pytest.mark.parametrize(
    "shape", [(), (1,), (5000,), (3, 1000), (33, 65), (130, 131), (2, 3, 40, 7)]
)
@pytest.mark.parametrize(
    "block", ["tensor", "row", "column", "1x2", "1x16", "1x300", "40x1", "3x5", "128x128", "1x3@0"]
)
def test_blocks_of_every_shape_lie_where_they_should(cupy, block, shape):
    """Parts of a block that several threads have, parts that several blocks of threads have, ends."""
    fmt = format(f"int8:{block}")
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32) ** 5
    if not shape and block == "1x3@0":
        pytest.skip("a scalar has no axis")
    if shape == (2, 3, 40, 7):
        x[1, 2, 3, 4] = np.inf
    testing.assert_same(to_numpy(quantize(cupy.asarray(x), fmt)), quantize(x, fmt), x, block)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "nvfp4", "e4m3:128x128", "int8", "int8:column"])
def test_the_order_of_threads_makes_no_difference(name, request, monkeypatch):
    """Last to first: what one thread leaves for another, it leaves before they all go on."""
    on_host = cupy_stand_in.on_host
    monkeypatch.setattr(cupy_stand_in, "on_host", lambda code: on_host(code, backward=True))
    monkeypatch.setattr(device, "_raw_kernel", device._raw_kernel.__wrapped__)
    if request.config.getoption("--backend") == "cupy":
        pytest.skip("a device's threads come in an order of its own")
    cupy = request.getfixturevalue("cupy")
    x = np.random.default_rng(4).standard_normal((150, 300)).astype(np.float32) ** 5
    testing.assert_same(to_numpy(quantize(cupy.asarray(x), name)), quantize(x, name), x, name)


@pytest.mark.parametrize("factor", [1.0, 3.1, 1e-30, 3e38])
def test_a_scale_that_is_given_is_a_float32_factor(cupy, factor):
    fmt, mode = format("e4m3:delayed"), Rounding.NEAREST
    for x in specimens(fmt, np.float32, (3, 50), seed=5):
        there = cupy.asarray(x)
        quantize_into(there, there, fmt, mode, factor=float(np.float32(factor)))
        want = np.empty_like(x)
        quantize_into(x, want, fmt, mode, factor=float(np.float32(factor)))
        testing.assert_same(to_numpy(there), want, x, str(factor))


def test_a_block_of_threads_has_as_much_as_it_can():
    """Small blocks share one; those along another axis lie beside their neighbours."""

    def lanes(shape, name):
        found = one_pass_blocks.shape(Tiling.of(shape, format(name).block), whole=False)
        return 1 << found.lane_bits, found.spread, found.grid

    assert lanes((64, 64), "int8:1x32") == (8, 0, (4,))
    assert lanes((64, 64), "int8:1x3") == (8, 0, (44,))
    assert lanes((64, 300), "int8:row") == (128, 0, (32,))
    assert lanes((64, 300), "int8:column") == (8, 1, (10,))
    assert lanes((200, 200), "int8:128x128") == (256, 0, (4,))
