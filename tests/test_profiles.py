"""Profiles: what each library gave, stored; and the library itself, where it is installed."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

import precsim as ps
from precsim import testing
from precsim.formats.profiles import profile
from precsim.formats.quantize import quantize

STORED = Path(__file__).parent / "data" / "profiles.npz"
CASES = [
    (name, fmt)
    for name, found in ps.PROFILES.items()
    if not name.startswith("ocp")
    for fmt in found.casts
]
DTYPES = {
    "fp16": "float16", "bf16": "bfloat16", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn",
    "e4m3_ieee": "float8_e4m3", "e3m4": "float8_e3m4", "e4m3fnuz": "float8_e4m3fnuz",
    "e5m2fnuz": "float8_e5m2fnuz", "e4m3b11fnuz": "float8_e4m3b11fnuz", "e3m2": "float6_e3m2fn",
    "e2m3": "float6_e2m3fn", "e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu",
}  # fmt: skip
FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""Every fp16 number, and its NaN payloads, in float32."""


def float32_patterns():
    """Return both signs of every exponent, with every fraction of 5 bits, ties of 10 and 11 bits,
    and the numbers next to all these: values, ties and near ties of every 8-bit format, subnormals
    of float32, infinities, NaN of many payloads.
    """
    fraction = np.arange(32, dtype=np.uint32) << 18
    near = np.concatenate([fraction + np.uint32(tie) for tie in (0, 1 << 12, 1 << 13)])
    near = np.unique(np.concatenate([near - 1, near, near + 1]) & np.uint32(0x7FFFFF))
    bits = np.add.outer(np.arange(256, dtype=np.uint32) << 23, near).ravel()
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


def float64_near_ties(name):
    """Return midpoints and what float32 cannot tell from them: where rounding twice goes wrong."""
    fmt = ps.format(name)
    values = ps.decode(np.arange(0, 2**fmt.bits, 1 if fmt.bits <= 8 else 61), fmt)
    values = values[np.isfinite(values)]
    ties = values + np.copysign([fmt.ulp(v) / 2 for v in values], values)
    ends = [1e300, -1e300, 1e-320, math.inf, -math.inf, math.nan, -math.nan, 0.0, -0.0]
    return np.concatenate([ties, ties * (1 + 2.0**-45), ties * (1 - 2.0**-45), values, ends])


def inputs(fmt):
    return {"f16": FLOAT16, "f32": float32_patterns(), "f64": float64_near_ties(fmt)}


# The libraries.


def ml_dtypes_codes(fmt, x):
    dtype = (
        np.float16 if fmt == "fp16" else getattr(importlib.import_module("ml_dtypes"), DTYPES[fmt])
    )
    with np.errstate(all="ignore"):
        result = x.astype(dtype)
    return result.view(np.uint8 if result.itemsize == 1 else np.uint16)


def torch_codes(fmt, x):
    torch = importlib.import_module("torch")
    return bits_of(torch, torch.from_numpy(np.array(x)).to(getattr(torch, DTYPES[fmt])))


def torchao_codes(fmt, x):
    torch = importlib.import_module("torch")
    tensor = torch.from_numpy(np.array(x))
    if fmt.startswith(("e4", "e5")):
        utils = importlib.import_module("torchao.float8.float8_utils")
        return bits_of(torch, utils.to_fp8_saturated(tensor, getattr(torch, DTYPES[fmt])))
    kernels = importlib.import_module("torchao.prototype.mx_formats.kernels")
    name = "f4" if fmt == "e2m1" else f"f6_{fmt}"
    return getattr(kernels, f"f32_to_{name}_unpacked")(tensor.float()).numpy()


def bits_of(torch, tensor):
    return tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.uint16).numpy()


LIBRARIES = {"ml_dtypes": ml_dtypes_codes, "torch-2.13": torch_codes, "torchao": torchao_codes}
VERSIONS = {"ml_dtypes": ("ml_dtypes", "0.6"), "torch-2.13": ("torch", "2.13"),
            "torchao": ("torchao", "0.18")}  # fmt: skip


def installed_codes(name, fmt, x):
    """Return the library's own codes, or skip where that version of it is not installed."""
    if name not in LIBRARIES:
        pytest.skip(f"{name} needs a GPU to be asked: its stored codes were compared")
    module, version = VERSIONS[name]
    found = pytest.importorskip(module)
    if not found.__version__.startswith(version):
        pytest.skip(f"the profile is that of {module} {version}; this is {found.__version__}")
    return LIBRARIES[name](fmt, x)


# Conformance.


@pytest.fixture(scope="module")
def stored():
    """The codes that the libraries gave, as differences (most are 0, and compress)."""
    with np.load(STORED) as found:
        return {name: np.cumsum(found[name], dtype=found[name].dtype) for name in found}


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
@pytest.mark.parametrize(("name", "fmt"), CASES)
def test_codes_are_what_the_library_gave(stored, name, fmt, kind):
    x, want = inputs(fmt)[kind], stored[f"{name}/{fmt}/{kind}"]
    codes = ps.encode(x, fmt, profile=name)
    assert codes.dtype == want.dtype
    assert codes.size == want.size == x.size
    assert_same_codes(codes, want, x)


@pytest.mark.parametrize(("name", "fmt"), CASES)
def test_codes_are_what_the_installed_library_gives(name, fmt):
    """NaN codes of 16-bit formats depend on the processor, so that they are NaN is all we ask."""
    for x in inputs(fmt).values():
        want, codes = installed_codes(name, fmt, x), ps.encode(x, fmt, profile=name)
        if fmt in ("fp16", "bf16"):
            nan = np.isnan(x)
            assert np.isnan(ps.decode(want[nan], fmt)).all()
            codes, want, x = codes[~nan], want[~nan], x[~nan]
        assert_same_codes(codes, want, x)


@pytest.mark.parametrize(("name", "fmt"), CASES)
def test_values_are_those_of_the_codes(name, fmt):
    for x in inputs(fmt).values():
        values = quantize(x, fmt, profile=name)
        want = ps.decode(ps.encode(x, fmt, profile=name), fmt, x.dtype)
        testing.assert_same(values, want, x)
        again = x.copy()
        assert quantize(again, fmt, profile=name, out=again) is again
        testing.assert_same(again, want, x)


def assert_same_codes(codes, want, x):
    for i in np.flatnonzero(codes != want)[:1]:
        pytest.fail(f"{x[i]!r} gave {codes[i]:#x}, the library gave {want[i]:#x}")


@pytest.mark.parametrize("name", ["ocp", "ocp-saturate"])
def test_ocp_is_the_specification_of_its_formats(name):
    for fmt in profile(name).casts:
        overflow = "saturate" if name == "ocp-saturate" else None
        x = testing.specimens(fmt)
        values = quantize(x, fmt, profile=name)
        testing.assert_same(values, quantize(x, fmt, overflow=overflow), x)
        codes = ps.encode(x, fmt, profile=name)
        np.testing.assert_array_equal(codes, ps.encode(x, fmt, overflow=overflow))


# The choices, one by one, as the libraries' users meet them.


@pytest.mark.parametrize(
    ("name", "fmt", "x", "value"),
    [
        ("ocp", "e4m3", 464.0, 448.0),
        ("ocp", "e4m3", 465.0, math.nan),
        ("ocp", "e5m2", 61440.0, math.inf),
        ("ocp-saturate", "e4m3", -math.inf, -448.0),
        ("ocp-saturate", "e5m2", math.inf, 57344.0),
        ("ml_dtypes", "e4m3", 465.0, math.nan),
        ("ml_dtypes", "e4m3fnuz", math.inf, math.nan),
        ("ml_dtypes", "e2m1", 1e9, 6.0),
        ("ml_dtypes", "e2m1", math.nan, -0.0),
        ("ml_dtypes", "e2m1", -math.nan, 0.0),
        ("ml_dtypes", "e8m0", 0.0, math.nan),
        ("ml_dtypes", "e8m0", -1.0, math.nan),
        ("torch-2.13", "e4m3", 465.0, 448.0),
        ("torch-2.13", "e4m3", math.inf, 448.0),
        ("torch-2.13", "e5m2", math.inf, math.inf),
        ("torch-2.13", "e8m0", 0.0, 2.0**-127),
        ("torch-2.13", "e8m0", -1.0, 1.0),
        ("torch-2.13", "e8m0", 1.1 * 2.0**-127, 2.0**-126),
        ("transformer-engine", "e5m2", math.inf, 57344.0),
        ("transformer-engine", "e4m3", math.nan, math.nan),
        ("transformer-engine", "e2m1", -math.nan, 6.0),
        ("torchao", "e5m2", -math.inf, -57344.0),
        ("torchao", "e4m3", math.nan, math.nan),
        ("torchao", "e2m1", math.nan, 1.5),  # its significand is 1.1 in binary
        ("torchao", "e2m1", -math.inf, -6.0),
    ],
)
def test_choices(name, fmt, x, value):
    for dtype in (np.float32, np.float64):
        got = quantize(np.array([x], dtype), fmt, profile=name)
        assert got.dtype == dtype
        testing.assert_same(got.astype(np.float64), np.array([value]), np.array([x]))


@pytest.mark.parametrize(
    ("name", "fmt", "positive", "negative"),
    [("ml_dtypes", "e5m2", 0x7E, 0xFE), ("torch-2.13", "e5m2", 0x7F, 0xFF),
     ("ml_dtypes", "bf16", 0x7FC0, 0xFFC0), ("torch-2.13", "bf16", 0xFFFF, 0xFFFF),
     ("ml_dtypes", "e4m3fnuz", 0x80, 0x80), ("transformer-engine", "e4m3", 0x7F, 0x7F),
     ("ml_dtypes", "e2m1", 0x8, 0x0), ("transformer-engine", "e2m1", 0x7, 0x7)],
)  # fmt: skip
def test_nan_codes(name, fmt, positive, negative):
    x = np.array([np.nan, np.copysign(np.nan, -1)])
    assert ps.encode(x, fmt, profile=name).tolist() == [positive, negative]
    assert ps.encode(np.nan, fmt, profile=name) == positive


def test_a_nan_may_keep_its_payload():
    x = np.array([0x7F800001, 0xFFC02000], np.uint32).view(np.float32)  # the first one signals
    assert ps.encode(x, "fp16", profile="ml_dtypes").tolist() == [0x7C01, 0xFE01]
    assert ps.encode(x, "fp16", profile="torch-2.13").tolist() == [0x7E00, 0xFE01]
    assert quantize(x, "e2m1", profile="torchao").tolist() == [1.0, -1.5]


@pytest.mark.parametrize("name", ["ml_dtypes", "torch-2.13"])
def test_only_a_profile_rounds_twice(name):
    """1.0625 + 2^-40 is above a midpoint of e4m3, and float32 takes it for the midpoint."""
    x = np.array([1.0625 + 2.0**-40, -(1.0625 + 2.0**-40)])
    assert quantize(x, "e4m3").tolist() == [1.125, -1.125]
    assert quantize(x, "e4m3", profile="ocp").tolist() == [1.125, -1.125]
    assert quantize(x, "e4m3", profile=name).tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("name", "fmt", "spelled"),
    [("ocp", "mxfp8_e4m3", "mxfp8_e4m3:floor"), ("torchao", "mxfp4", "mxfp4:floor"),
     ("transformer-engine", "mxfp8_e4m3", "mxfp8_e4m3:rceil"),
     ("transformer-engine", "nvfp4", "e2m1:1x16:e4m3+fp32:scale_min=0.0:inverse"),
     ("torchao", "nvfp4", "e2m1:1x16:e4m3:scale_min=0.015625")],
)  # fmt: skip
def test_block_scales_are_the_librarys(name, fmt, spelled):
    x = np.random.default_rng(0).standard_normal((4, 64)) * 2.0 ** np.arange(-8, 8, 4)[:, None]
    testing.assert_same(quantize(x, fmt, profile=name), quantize(x, spelled), x)
    codes, scales = ps.encode(x, fmt, profile=name)
    own = profile(name).scaled(ps.format(fmt))
    testing.assert_same(ps.decode(codes, own, scales=scales), quantize(x, spelled), x)


def test_torchao_s_own_nvfp4():
    """Without a scale for the tensor, and with none below 2^-6."""
    torch = pytest.importorskip("torch")
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 256)) * 10.0 ** rng.integers(-4, 3, (64, 1))).astype(np.float32)
    scales, packed = nvfp4.nvfp4_quantize(torch.from_numpy(x))
    pairs = packed.numpy().reshape(64, 128)
    theirs = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(64, 256)
    codes, ours = ps.encode(x, "nvfp4", profile="torchao")
    np.testing.assert_array_equal(ours.ravel(), scales.view(torch.uint8).numpy().ravel())
    np.testing.assert_array_equal(codes, theirs)


@pytest.mark.parametrize("name", ps.PROFILES)
def test_any_shape_and_kind_of_number(name):
    assert quantize(np.zeros((0, 3)), "e4m3", profile=name).shape == (0, 3)
    assert quantize([[1, 2], [3, 500]], "e4m3", profile=name)[1, 0] == 3
    assert isinstance(quantize(1.06, "e4m3", profile=name), np.float64)
    x = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(quantize(x, "e4m3", profile=name), x)
    np.testing.assert_array_equal(ps.decode(ps.encode(x, "e4m3", profile=name), "e4m3"), x)
    assert quantize(1.06, "e4m3", profile=ps.PROFILES[name]) == 1.0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"profile": "tensorflow"}, "unknown profile 'tensorflow': expected one of ocp, ocp-sat"),
        (
            {"profile": "ocp", "fmt": "bf16"},
            "profile 'ocp' says nothing of bf16: expected e4m3, e5",
        ),
        ({"profile": "torchao", "fmt": "int8"}, "profile 'torchao' says nothing of int8"),
        ({"profile": "ml_dtypes", "fmt": "mxfp4"}, "profile 'ml_dtypes' says nothing of mxfp4"),
        ({"profile": "ocp", "rounding": "up"}, "profile 'ocp' decides on rounding and overflow"),
        ({"profile": "ocp", "overflow": "ieee"}, "expected neither beside it"),
    ],
    ids=str,
)
def test_wrong_input_says_what_would_be_right(how, message):
    for function in (quantize, ps.encode):
        with pytest.raises(ValueError, match=message):
            function(**{"x": 1.0, "fmt": "e4m3"} | how)
