"""Every format that has a name, one literal each, and the grammar of the names that are spelled.

Sources: IEEE 754-2019 (fp16, fp32, fp64); OCP 8-bit Floating Point Specification 1.0 (e4m3, e5m2);
OCP Microscaling Formats 1.0 (e3m2, e2m3, e2m1, e8m0); Noune et al. 2022, arXiv:2206.02915 (FNUZ);
ml_dtypes 0.6 for e3m4, e4m3_ieee and e4m3b11fnuz.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from types import MappingProxyType

from precsim.formats.format import Format, Specials
from precsim.formats.scaled import Scaled, Sharing

AnyFormat = Format | Scaled

_FN, _FNUZ, _FINITE = Specials.FN, Specials.FNUZ, Specials.FINITE

_PLAIN = (
    Format("fp64", 11, 52, note="IEEE binary64, the carrier"),
    Format("fp32", 8, 23, note="IEEE binary32"),
    Format("tf32", 8, 10, note="NVIDIA tensor cores' input, 19 bits"),
    Format("fp16", 5, 10, note="IEEE binary16"),
    Format("bf16", 8, 7, note="fp32's range, 8 significand bits"),
    Format("e5m2", 5, 2, note="OCP FP8 for gradients"),
    Format("e4m3", 4, 3, _FN, note="OCP FP8 for weights and activations"),
    Format("e4m3_ieee", 4, 3, note="with infinities, as IEEE would have it"),
    Format("e3m4", 3, 4, note="with infinities"),
    Format("e4m3fnuz", 4, 3, _FNUZ, bias=8, note="AMD MI300, Graphcore"),
    Format("e5m2fnuz", 5, 2, _FNUZ, bias=16, note="AMD MI300, Graphcore"),
    Format("e4m3b11fnuz", 4, 3, _FNUZ, bias=11, note="bias 11"),
    Format("e3m2", 3, 2, _FINITE, note="OCP MX, 6 bits"),
    Format("e2m3", 2, 3, _FINITE, note="OCP MX, 6 bits"),
    Format("e2m1", 2, 1, _FINITE, note="OCP MX, 4 bits"),
    Format("e8m0", 8, 0, _FN, signed=False, has_zero=False, subnormals=False,
           note="OCP MX scales: powers of two, no sign, no zero"),
)  # fmt: skip

_INTEGERS = (
    Format("int8", 0, 7, _FINITE, bias=-6, note="-127..127, one scale"),
    Format("int4", 0, 3, _FINITE, bias=-2, note="-7..7, one scale"),
)

FORMATS: MappingProxyType[str, AnyFormat] = MappingProxyType(
    {f.name: f for f in _PLAIN} | {f.name: Scaled(f, Sharing.TENSOR) for f in _INTEGERS}
)
"""Name -> format, in the order in which tables print them."""

ALIASES: MappingProxyType[str, str] = MappingProxyType(
    {
        "float64": "fp64", "double": "fp64", "float32": "fp32", "single": "fp32",
        "tensorfloat32": "tf32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16",
        "float8_e5m2": "e5m2", "float8_e4m3fn": "e4m3", "e4m3fn": "e4m3",
        "float8_e4m3": "e4m3_ieee", "float8_e3m4": "e3m4", "float8_e4m3fnuz": "e4m3fnuz",
        "float8_e5m2fnuz": "e5m2fnuz", "float8_e4m3b11fnuz": "e4m3b11fnuz",
        "float6_e3m2fn": "e3m2", "float6_e2m3fn": "e2m3", "float4_e2m1fn": "e2m1",
        "float8_e8m0fnu": "e8m0",
    }
)  # fmt: skip
"""Names of ml_dtypes and PyTorch -> names used here (`float8_e4m3` is ml_dtypes' IEEE one)."""

_SPELLED = re.compile(r"e(\d+)m(\d+)")


@lru_cache(maxsize=1024)
def format(spec: str | AnyFormat) -> AnyFormat:
    """Return the format called `spec`; a format passes through.

    Accepted: a name in `FORMATS` or `ALIASES`; any "e<exp>m<man>" spelled out, which has IEEE 754
    specials unless it is a registered name (so "e4m3" is OCP's, max 448); a suffix "_ftz" flushes
    subnormals; a suffix ":tensor", ":row" or ":column" adds a shared scale (`Scaled`).
    Raises `ValueError`, with the nearest names, for anything else.
    """
    if isinstance(spec, Format | Scaled):
        return spec
    base, colon, sharing = spec.strip().lower().partition(":")
    found = _plain(base, spec)
    if not colon:
        return found
    if sharing not in set(Sharing):
        msg = f"unknown scale sharing {sharing!r} in {spec!r}: expected tensor, row or column"
        raise ValueError(msg)
    element = found.element if isinstance(found, Scaled) else found
    return Scaled(element, Sharing(sharing))


def element_of(fmt: AnyFormat) -> Format:
    """Return the element format of a scaled format; a plain format is its own element."""
    return fmt.element if isinstance(fmt, Scaled) else fmt


def _plain(name: str, spec: str) -> AnyFormat:
    name = ALIASES.get(name, name)
    if name in FORMATS:
        return FORMATS[name]
    if name.endswith("_ftz"):
        inner = _plain(name.removesuffix("_ftz"), spec)
        if isinstance(inner, Format):
            return inner.flushed()
    elif match := _SPELLED.fullmatch(name):
        exp_bits, man_bits = map(int, match.groups())
        if exp_bits < 2:
            msg = f"format {spec!r}: a spelled-out format needs at least 2 exponent bits"
            raise ValueError(msg)
        return Format(name, exp_bits, man_bits)
    near = difflib.get_close_matches(name, [*FORMATS, *ALIASES], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`precsim formats` lists all."
    msg = f"unknown format {spec!r}: {hint} Any e<exp>m<man> works too, e.g. e6m9."
    raise ValueError(msg)
