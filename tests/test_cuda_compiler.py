"""NVIDIA's own compiler takes the device's code; it needs no device for that, only its library.

Runs where `pip install nvidia-cuda-nvrtc-cu12` (or another package with that library) was run.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import pytest

from precsim.backend import grid, one_pass, one_pass_blocks, one_pass_counts, one_pass_flags
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.registry import format

SETTLED = one_pass.settled(one_pass.rule(format("e4m3"), Rounding.NEAREST, Overflow.IEEE))
ARCHITECTURES = ("sm_75", "sm_90")

ALONE = f"""
PRECSIM_KERNEL alone(const double *x, const float *f, double *y, float *g, word64 *w,
                     {one_pass.PARAMETERS}, {one_pass.OUTER_PARAMETERS}) {{
    y[0] = precsim_round(x[0], 0, {one_pass.ARGUMENTS});
    g[1] = precsim_round_float(f[0], 0, {one_pass.ARGUMENTS});
    y[1] = precsim_dot_double(x, x, 1, 9, 3, {one_pass.ARGUMENTS}, {one_pass.OUTER_ARGUMENTS});
    g[0] = precsim_dot_float(f, f, 1, 9, 3, {one_pass.ARGUMENTS}, {one_pass.OUTER_ARGUMENTS});
    precsim_philox(1, 2, 3, 4, 5, 6, w);
}}
"""
"""What CuPy puts into kernels of its own, in one of ours."""

SOURCES = {
    "elements": one_pass.ROUND + one_pass.ROUND_FLOAT + one_pass.PHILOX + one_pass.dot("float") + one_pass.dot("double")
    + ALONE,
    **{
        f"counts of {real}, rounding by {rounding or 'others'}": one_pass_counts.source(
            real, -160, 301, rounding
        )
        for real in ("float", "double")
        for rounding in ("", one_pass.ARGUMENTS, SETTLED)
    },
    **{
        f"{source.__name__} of {real}": source(real)
        for real in ("float", "double")
        for source in (one_pass_flags.accounts, one_pass_flags.updates, one_pass_counts.largest)
    },
    **{
        f"{'affine ' * affine}blocks of {real}": one_pass_blocks.source(real, SETTLED, affine)
        for real in ("float", "double")
        for affine in (False, True)
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def nvrtc():
    spec = find_spec("nvidia")
    places = [] if spec is None else spec.submodule_search_locations
    found = [path for place in places for path in sorted(Path(place).rglob("libnvrtc.so.*"))]
    if not found:
        pytest.skip("NVIDIA's compiler is not here: try `pip install nvidia-cuda-nvrtc-cu12`")
    return ctypes.CDLL(str(found[0]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("code", SOURCES.values(), ids=SOURCES)
def test_the_code_compiles_for_a_device(nvrtc, code, architecture):
    source = (grid.DEVICE + one_pass.TYPES + code).encode()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"k.cu", 0, None, None)
    assert created == 0
    options = [f"--gpu-architecture={architecture}", *one_pass.NO_CONTRACTION]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert (status, log.value.decode()) == (0, "")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    assert size.value > 1000
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
