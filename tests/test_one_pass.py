"""The device's C, compiled for the host: equal to the specification, and to the array kernels."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from numpy.ctypeslib import ndpointer
from test_random import KNOWN_ANSWERS

from precsim import testing
from precsim.backend import one_pass
from precsim.engine.arithmetic import Arithmetic
from precsim.engine.precision import Accumulator
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Overflow, Rounding, rounding_mode, stochastic
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
MODES = [*Rounding, "stochastic_a3", "stochastic_b8", "stochastic_c32", "stochastic_equal"]
FORMATS = [
    *testing.GRIDS,
    *map(format, ("fp16_ftz", "bf16_ftz", "e4m3_ftz", "e6m9", "e11m3", "e7m22", "e10m50")),
    Format("ue4m3", 4, 3, Specials.FN, signed=False),
    Format("ue8m7", 8, 7, signed=False),
    Format("ue8m23", 8, 23, signed=False),
    Format("ue11m52", 11, 52, signed=False),
    Format("e7m3_bias135", 7, 3, bias=135),
]

LOOPS = f"""
#include <math.h>
#include <stddef.h>
#define PRECSIM static
{one_pass.TYPES}{one_pass.ROUND}{one_pass.ROUND_FLOAT}
{one_pass.PHILOX}
{one_pass.dot("float")}
{one_pass.dot("double")}
void round_all(const double *x, const word32 *w, double *y, size_t n, {one_pass.PARAMETERS}) {{
    for (size_t i = 0; i < n; i++) y[i] = precsim_round(x[i], w[i], {one_pass.ARGUMENTS});
}}
void round_all_float(const float *x, const word32 *w, float *y, size_t n,
                     {one_pass.parameters("float")}) {{
    for (size_t i = 0; i < n; i++) y[i] = precsim_round_float(x[i], w[i], {one_pass.ARGUMENTS});
}}
void philox_one(const word64 *c, const word64 *k, word64 *out) {{
    precsim_philox(c[0], c[1], c[2], c[3], k[0], k[1], out);
}}
#define MATMUL(real) \\
void matmul_##real(const real *a, const real *b, real *out, size_t m, size_t k, size_t n, \\
                   size_t chunk, {one_pass.PARAMETERS}, {one_pass.OUTER_PARAMETERS}) {{ \\
    for (size_t i = 0; i < m; i++) for (size_t j = 0; j < n; j++) \\
        out[i * n + j] = precsim_dot_##real(a + i * k, b + j, n, k, chunk, \\
            {one_pass.ARGUMENTS}, {one_pass.OUTER_ARGUMENTS}); \\
}}
MATMUL(float)
MATMUL(double)
"""

RULE = [ctypes.c_double] * 3 + [ctypes.c_int] * 6
RULE_OF_FLOATS = [ctypes.c_float] * 3 + [ctypes.c_int] * 6


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C compiler here: the device's code is not compiled for the host")
    folder = tmp_path_factory.mktemp("c")
    (folder / "one_pass.c").write_text(LOOPS)
    command = [COMPILER, "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unused-function",
               "-shared", "-fPIC", "-o", folder / "one_pass.so", folder / "one_pass.c", "-lm"]  # fmt: skip
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "one_pass.so"))


def rounder(code, fmt, rounding, overflow, dtype=np.float64):
    rule = one_pass.rule(fmt, rounding_mode(rounding), overflow)
    reals, integers = ndpointer(dtype, flags="C"), ndpointer(np.uint32, flags="C")
    narrow = dtype is np.float32
    round_all, rules = (code.round_all_float, RULE_OF_FLOATS) if narrow else (code.round_all, RULE)
    round_all.argtypes = [reals, integers, reals, ctypes.c_size_t, *rules]

    def run(x, draw=None):
        draw = np.zeros(x.shape, np.uint32) if draw is None else draw
        out = np.empty(x.shape, dtype)
        round_all(x.astype(dtype), draw, out, x.size, *rule)
        return out

    return run


def words_for(x):
    draw = np.random.default_rng(1).integers(0, 2**32, x.shape, np.uint32)
    draw[::7], draw[3::7] = 0, 2**32 - 1
    return draw


def sample(fmt):
    x = testing.specimens(fmt, np.float64, per_binade=32 if fmt.bits <= 8 else 4)
    return x[:: max(1, x.size // 20_000)]


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_it_is_the_specification(code, fmt, rounding):
    x = sample(fmt)[:: 3 if fmt.bits <= 8 else 1][:3000]
    draw = words_for(x)
    for overflow in Overflow if fmt.has_nan else (Overflow.SATURATE,):
        run = rounder(code, fmt, rounding, overflow)
        used = draw if rounding is Rounding.STOCHASTIC else None
        found = testing.check_rounding(
            lambda v, run=run: run(v, draw), fmt, rounding, overflow, x, used
        )
        assert found > 100


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_it_has_the_bits_of_the_array_kernels(code, fmt, rounding):
    draw = words_for(sample(fmt))
    for dtype in (np.float64, np.float32) if format("fp32").contains(fmt) else (np.float64,):
        with np.errstate(over="ignore"):
            x = sample(fmt).astype(dtype)
        for overflow in Overflow if fmt.has_nan else (Overflow.SATURATE,):
            random = draw if stochastic(rounding_mode(rounding)) else None
            expected = quantize(x, fmt, rounding, overflow, random=random)
            got = rounder(code, fmt, rounding, overflow, dtype)(x, draw)
            nan, uint = np.isnan(expected), f"u{x.itemsize}"
            np.testing.assert_array_equal(np.isnan(got), nan)
            np.testing.assert_array_equal(got.view(uint)[~nan], expected.view(uint)[~nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_signalling_nan_comes_out_quiet_as_processors_make_it(code, dtype):
    """IEEE 754-2019, 6.2: the first bit of the fraction is set; sign and payload stay."""
    uint, first = (np.uint32, 22) if dtype is np.float32 else (np.uint64, 51)
    infinity = np.array([np.inf, -np.inf], dtype).view(uint)
    signalling = (infinity | uint(5)).view(dtype)
    got = rounder(code, format("e5m2"), "nearest", Overflow.IEEE, dtype)(signalling)
    np.testing.assert_array_equal(got.view(uint), infinity | uint(5) | uint(1 << first))


@pytest.mark.parametrize(("counter", "the_key", "expected"), KNOWN_ANSWERS)
def test_the_cipher_gives_the_published_answers(code, counter, the_key, expected):
    four = ndpointer(np.uint64, flags="C")
    code.philox_one.argtypes = [four, four, four]
    out = np.empty(4, np.uint64)
    code.philox_one(np.array(counter, np.uint64), np.array(the_key, np.uint64), out)
    assert tuple(map(int, out)) == expected


@pytest.mark.parametrize(
    "unit", ["fp16", "bf16", "e5m2", "e6m9", "fp32", "fp16>fp32@8", "e4m3>bf16@7"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_narrow_accumulator_adds_up_as_the_engine_does(code, unit, dtype):
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((9, 40), (40, 7)))
    accumulator = Accumulator.parse(unit)
    expected = Arithmetic(np, np.dtype(dtype), accumulator).matmul(a, b)
    inner, outer = (
        one_pass.rule(format(name), Rounding.NEAREST, Overflow.IEEE)
        for name in (accumulator.format, accumulator.outer)
    )
    matmul = getattr(code, "matmul_float" if dtype is np.float32 else "matmul_double")
    matrix = ndpointer(dtype, flags="C")
    matmul.argtypes = [matrix, matrix, matrix, *[ctypes.c_size_t] * 4, *RULE, *RULE]
    out = np.empty((9, 7), dtype)
    matmul(a, b, out, 9, 40, 7, accumulator.chunk, *inner, *outer)
    np.testing.assert_array_equal(out, expected)
