"""What a library makes of the choices that a format leaves open, as data.

`quantize` and `encode` follow the rules in `modes.py`.  Libraries differ from these, and from each
other, in what they do with overflow, infinities, NaN, zero and float64 input.  A `Profile` says
what one library does, one `Cast` for each format that it knows; ``quantize(x, "e4m3",
profile="torch-2.13")`` then gives the library's values, ``encode`` its codes, bit for bit.

The tests compare every profile with the library itself where it is installed, and always with
what it gave when the profile was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np

from precsim.formats import exact
from precsim.formats.arrays import Array, array_module
from precsim.formats.format import Format
from precsim.formats.kernels import round_into
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.registry import AnyFormat, format
from precsim.formats.scaled import Scaled


class Payload(StrEnum):
    """NaN codes that depend on the bits of the NaN."""

    KEPT = "kept"
    """Sign and leading payload bits, a signalling NaN stays one (NumPy's float16)."""
    QUIET = "quiet"
    """Sign and leading payload bits, with the quiet bit set (x86's vcvtps2ph, PyTorch's float16)."""
    AS_NUMBER = "as number"
    """In a format without NaN: the significand 1.payload, rounded (torchao's fp4 and fp6)."""


@dataclass(frozen=True)
class Cast:
    """How a library rounds to one format; to nearest, ties to even, as they all do.

    overflow: what values beyond `max` become, and infinities with them.
    nan: the codes that +NaN and -NaN become.
    narrows: float64 is rounded to float32 first, so that a value just beyond a midpoint is taken
    for the midpoint and may go the wrong way.
    zero, ignores_sign, ceils: for e8m0, which has no zero and no sign: the code that zero becomes
    (None: the smallest value's); whether a negative number counts as positive (else it is NaN);
    whether what lies between the two smallest values (float32 subnormals) always goes up.
    """

    overflow: Overflow
    nan: tuple[int, int] | Payload
    narrows: bool = True
    zero: int | None = None
    ignores_sign: bool = False
    ceils: bool = False


@dataclass(frozen=True)
class Profile:
    """One library's choices.

    `casts` has a `Cast` for every plain format that the library knows.  `blocks` says how it scales
    the scaled formats that it knows: with the scales of the format named.  That is all it says of
    them: NaN and infinities in a block are `Scaled`'s.
    """

    name: str
    source: str
    casts: Mapping[str, Cast] = field(hash=False)
    blocks: Mapping[str, str] = field(hash=False, default_factory=dict)

    def cast(self, fmt: Format) -> Cast:
        """Return how the library rounds to a plain format; `ValueError` where it does not."""
        return self.casts[self._known(fmt, self.casts)]

    def scaled(self, fmt: Scaled) -> Scaled:
        """Return the format with the library's scales, which `decode` needs to read its codes."""
        found = format(self.blocks[self._known(fmt, self.blocks)])
        assert isinstance(found, Scaled)
        return found

    def _known(self, fmt: AnyFormat, names: Mapping[str, object]) -> str:
        if fmt.name in names:
            return fmt.name
        known = ", ".join([*self.casts, *self.blocks])
        msg = f"profile {self.name!r} says nothing of {fmt.name}: expected {known}"
        raise ValueError(msg)


_IEEE, _SATURATE = Overflow.IEEE, Overflow.SATURATE

_MX = {name: name for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4")}

_ELEMENTS_OF_MX = {
    name: Cast(_SATURATE, (0, 0), narrows=False) for name in ("e3m2", "e2m3", "e2m1")
}

_PROFILES = (
    Profile(
        "ocp",
        "OCP OFP8 1.0, non-saturating mode (section 5.2); OCP MX 1.0.  What they leave open (NaN "
        "codes and signs, NaN in fp6 and fp4, e8m0 of zero and negatives) is as without a profile",
        {
            "e4m3": Cast(_IEEE, (0x7F, 0x7F), narrows=False),
            "e5m2": Cast(_IEEE, (0x7E, 0x7E), narrows=False),
            **_ELEMENTS_OF_MX,
            "e8m0": Cast(_IEEE, (0xFF, 0xFF), narrows=False),
        },
        _MX | {"mxint8": "mxint8"},
    ),
    Profile(
        "ocp-saturate",
        "OCP OFP8 1.0, saturating mode (section 5.2): infinities become the largest value too",
        {
            "e4m3": Cast(_SATURATE, (0x7F, 0x7F), narrows=False),
            "e5m2": Cast(_SATURATE, (0x7E, 0x7E), narrows=False),
            **_ELEMENTS_OF_MX,
            "e8m0": Cast(_SATURATE, (0xFF, 0xFF), narrows=False),
        },
        _MX | {"mxint8": "mxint8"},
    ),
    Profile(
        "ml_dtypes",
        "ml_dtypes 0.6.0, `x.astype(ml_dtypes.float8_e4m3fn)`; fp16 is NumPy 2.4's own",
        {
            "fp16": Cast(_IEEE, Payload.KEPT, narrows=False),
            "bf16": Cast(_IEEE, (0x7FC0, 0xFFC0)),
            "e5m2": Cast(_IEEE, (0x7E, 0xFE)),
            "e4m3": Cast(_IEEE, (0x7F, 0xFF)),
            "e4m3_ieee": Cast(_IEEE, (0x7C, 0xFC)),
            "e3m4": Cast(_IEEE, (0x78, 0xF8)),
            "e4m3fnuz": Cast(_IEEE, (0x80, 0x80)),
            "e5m2fnuz": Cast(_IEEE, (0x80, 0x80)),
            "e4m3b11fnuz": Cast(_IEEE, (0x80, 0x80)),
            # NaN becomes the zero of the other sign.
            "e3m2": Cast(_SATURATE, (0x20, 0x00)),
            "e2m3": Cast(_SATURATE, (0x20, 0x00)),
            "e2m1": Cast(_SATURATE, (0x08, 0x00)),
            "e8m0": Cast(_IEEE, (0xFF, 0xFF), zero=0xFF, ceils=True),
        },
    ),
    Profile(
        "torch-2.13",
        "PyTorch 2.13 on a CPU, `x.to(torch.float8_e4m3fn)`.  bf16's NaN is that of the vector "
        "code for float32; its scalar code (short tails, other processors) gives 0x7fc0",
        {
            "fp16": Cast(_IEEE, Payload.QUIET),
            "bf16": Cast(_IEEE, (0xFFFF, 0xFFFF)),
            "e5m2": Cast(_IEEE, (0x7F, 0xFF)),
            "e4m3": Cast(_SATURATE, (0x7F, 0xFF)),
            "e4m3fnuz": Cast(_IEEE, (0x80, 0x80)),
            "e5m2fnuz": Cast(_IEEE, (0x80, 0x80)),
            "e8m0": Cast(_IEEE, (0xFF, 0xFF), ignores_sign=True, ceils=True),
        },
    ),
    Profile(
        "transformer-engine",
        "Transformer Engine 2: CUDA's saturating conversions (cvt.rn.satfinite; cuda_fp8.hpp and "
        "cuda_fp4.hpp of CUDA 12.9 and 13.5, __NV_SATFINITE).  A NaN loses its sign, in fp4 it is the largest value",
        {
            "e4m3": Cast(_SATURATE, (0x7F, 0x7F)),
            "e5m2": Cast(_SATURATE, (0x7F, 0x7F)),
            "e2m1": Cast(_SATURATE, (0x07, 0x07)),
        },
        {
            "mxfp8_e4m3": "mxfp8_e4m3:rceil",
            "mxfp8_e5m2": "mxfp8_e5m2:rceil",
            "nvfp4": "nvfp4:inverse",
        },
    ),
    Profile(
        "torchao",
        "torchao 0.18: `to_fp8_saturated`, which clamps and leaves the rest to PyTorch; "
        "`f32_to_f4_unpacked`, `f32_to_f6_e2m3_unpacked`, `f32_to_f6_e3m2_unpacked`",
        {
            "e5m2": Cast(_SATURATE, (0x7F, 0xFF)),
            "e4m3": Cast(_SATURATE, (0x7F, 0xFF)),
            "e4m3fnuz": Cast(_SATURATE, (0x80, 0x80)),
            "e5m2fnuz": Cast(_SATURATE, (0x80, 0x80)),
            "e3m2": Cast(_SATURATE, Payload.AS_NUMBER),
            "e2m3": Cast(_SATURATE, Payload.AS_NUMBER),
            "e2m1": Cast(_SATURATE, Payload.AS_NUMBER),
        },
        # The defaults: `ScaleCalculationMode.FLOOR`, and NVFP4 without a scale for the tensor.
        _MX | {"nvfp4": "e2m1:1x16:e4m3:scale_min=0.015625"},
    ),
)

PROFILES: MappingProxyType[str, Profile] = MappingProxyType({p.name: p for p in _PROFILES})
"""Name -> profile."""


def profile(spec: str | Profile) -> Profile:
    """Return the profile of that name; a profile passes through.  `ValueError` for other names."""
    if isinstance(spec, Profile):
        return spec
    if spec not in PROFILES:
        msg = f"unknown profile {spec!r}: expected one of {', '.join(PROFILES)}"
        raise ValueError(msg)
    return PROFILES[spec]


def round_as(x: Array, out: Array, fmt: Format, cast: Cast) -> None:
    """Round contiguous x into `out` (which may be x) as the library does."""
    xp = array_module(x)
    with np.errstate(all="ignore"):
        source = x.astype(np.float32).astype(x.dtype) if cast.narrows else x
        nan = xp.isnan(x)
        changes: list[tuple[Array, int]] = []
        if cast.nan is Payload.AS_NUMBER:
            source = xp.where(nan, _significand(x), source)
        elif not fmt.has_nan and isinstance(cast.nan, tuple):
            signs = zip(cast.nan, (~xp.signbit(x), xp.signbit(x)), strict=True)
            changes += [(nan & sign, code) for code, sign in signs]
        if cast.ignores_sign:
            source = xp.abs(source)
        if cast.ceils:
            changes.append(((source > fmt.min) & (source < 2 * fmt.min), 1))
        if cast.zero is not None:
            changes.append((source == 0, cast.zero))
        round_into(source, out, fmt, Rounding.NEAREST, cast.overflow)
        for where, code in changes:
            xp.copyto(out, exact.decode(code, fmt), where=where)


def nan_codes(x: Array, fmt: Format, cast: Cast) -> Array:
    """Return the code that each element of x would have if its result were NaN."""
    xp = array_module(x)
    if isinstance(cast.nan, tuple):
        return xp.where(xp.signbit(x), cast.nan[1], cast.nan[0])  # type: ignore[no-any-return]
    hidden = 1 << fmt.man_bits
    uint, digits = (np.uint32, 23) if x.dtype == np.float32 else (np.uint64, 52)
    bits: Any = x.view(uint)
    payload = (bits >> (digits - fmt.man_bits)) & uint(hidden - 1)
    quiet = uint(hidden >> 1 if cast.nan is Payload.QUIET else 0)
    payload = xp.maximum(payload | quiet, uint(1))  # no payload would be an infinity
    top = ((1 << fmt.exp_bits) - 1) * hidden
    sign = xp.signbit(x).astype(uint) << (fmt.bits - 1)
    return sign | uint(top) | payload  # type: ignore[no-any-return]


def _significand(x: Array) -> Any:
    """Return +-1.f for float32 NaN with fraction bits f."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits & np.uint32(0x807FFFFF)) | np.uint32(0x3F800000)).view(np.float32)
