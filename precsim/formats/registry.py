"""Every format that has a name, one literal each, and the grammar of the names that are spelled.

Sources: IEEE 754-2019 (fp16, fp32, fp64); OCP 8-bit Floating Point Specification 1.0 (e4m3, e5m2);
OCP Microscaling Formats 1.0 (e3m2, e2m3, e2m1, e8m0); Noune et al. 2022, arXiv:2206.02915 (FNUZ);
ml_dtypes 0.6 for e3m4, e4m3_ieee and e4m3b11fnuz.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from precsim.formats.format import Format, Specials
from precsim.formats.scaled import FP32, Block, Scaled, ScaleRule, usual_rule

AnyFormat = Format | Scaled

_FN, _FNUZ, _FINITE = Specials.FN, Specials.FNUZ, Specials.FINITE

_PLAIN = (
    Format("fp64", 11, 52, note="IEEE binary64, the carrier"),
    FP32,
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

_INT8 = Format("int8", 0, 7, _FINITE, bias=-6, note="-127..127")
_INT4 = Format("int4", 0, 3, _FINITE, bias=-2, note="-7..7")
_INT8_Q6 = Format("int8_q6", 0, 7, _FINITE, bias=0, note="MXINT8's elements: int8 times 2^-6")
_ELEMENTS = {f.name: f for f in (*_PLAIN, _INT8, _INT4, _INT8_Q6)}

_E8M0, _MX = _ELEMENTS["e8m0"], Block(1, 32)

_SCALED = (
    Scaled(_INT8, label="int8", note="-127..127, one scale"),
    Scaled(_INT4, label="int4", note="-7..7, one scale"),
    Scaled(_ELEMENTS["e4m3"], _MX, _E8M0, ScaleRule.FLOOR, label="mxfp8_e4m3", note="OCP MX"),
    Scaled(_ELEMENTS["e5m2"], _MX, _E8M0, ScaleRule.FLOOR, label="mxfp8_e5m2", note="OCP MX"),
    Scaled(_ELEMENTS["e3m2"], _MX, _E8M0, ScaleRule.FLOOR, label="mxfp6_e3m2", note="OCP MX"),
    Scaled(_ELEMENTS["e2m3"], _MX, _E8M0, ScaleRule.FLOOR, label="mxfp6_e2m3", note="OCP MX"),
    Scaled(_ELEMENTS["e2m1"], _MX, _E8M0, ScaleRule.FLOOR, label="mxfp4", note="OCP MX"),
    Scaled(_INT8_Q6, _MX, _E8M0, ScaleRule.FLOOR, full_range=True, label="mxint8", note="OCP MX"),
    Scaled(_ELEMENTS["e2m1"], Block(1, 16), _ELEMENTS["e4m3"], ScaleRule.MAX, FP32, scale_min=0.0,
           label="nvfp4", note="NVIDIA, as Transformer Engine scales it"),
)  # fmt: skip

FORMATS: MappingProxyType[str, AnyFormat] = MappingProxyType(
    {f.name: f for f in (*_PLAIN, *_SCALED)}
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
        "mxfp8": "mxfp8_e4m3", "mxfp6": "mxfp6_e2m3", "mxfp4_e2m1": "mxfp4",
    }
)  # fmt: skip
"""Names of ml_dtypes and PyTorch -> names used here (`float8_e4m3` is ml_dtypes' IEEE one)."""

_BOUND = re.compile(r"(amax_min|scale_min)=(\d+\.?\d*(?:e[+-]?\d+)?)")
_SPELLED = re.compile(r"e(\d+)m(\d+)")
_FIXED = re.compile(r"q(\d+)\.(\d+)")


@lru_cache(maxsize=1024)
def format(spec: str | AnyFormat) -> AnyFormat:
    """Return the format called `spec`; a format passes through.

    Accepted: a name in `FORMATS` or `ALIASES`; any "e<exp>m<man>" spelled out, which has IEEE 754
    specials unless it is a registered name (so "e4m3" is OCP's, max 448); a suffix "_ftz" flushes
    subnormals.  "q<int>.<frac>" is fixed point, multiples of 2^-frac in int + frac bits, sign
    included: "q2.6" holds -127/64 .. 127/64, symmetric as int8 is, and saturates (Gupta et al.
    2015, arXiv:1502.02551, <IL, FL>, has one more negative value).  Words after colons, in any
    order, give it scales, or change those of a scaled one:

        tensor, row, column, 1x128, 128x128, 32x1, 1x32@0    which values share a scale (`Block`)
        fp32, e8m0, e4m3, ...; e4m3+fp32                     the scale's format; a tensor scale too
        max, span, floor, ceil, even, rceil (pow2), inverse, delayed     how it follows from amax
                                                                         (`ScaleRule`)
        full, affine                                         integers: -128..127; a zero point
        amax_min=1e-4, scale_min=0.015625                    lower bounds (`Scaled`)

    "e4m3:1x128", "int8:row:full", "e2m1:1x16:e4m3+fp32", "mxfp4:rceil", "nvfp4:16x16".  Said
    nothing, there is one fp32 scale per tensor, by "max", or by "floor" where scales are e8m0.
    Raises `ValueError`, with what would be right, for any other text, `TypeError` for what is none.
    """
    if isinstance(spec, Format | Scaled):
        return spec
    if not isinstance(spec, str):
        msg = f"expected a format or the name of one, such as 'e4m3' or 'float16'; got {spec!r}"
        raise TypeError(msg)
    name, *words = spec.strip().lower().split(":")
    found = _plain(name, spec)
    return _named(_with_words(found, words, spec)) if words else found


def is_scale_word(word: str) -> bool:
    """Whether a word, after a format and a colon, says something about scales."""
    try:
        _read_word(word, word)
    except ValueError:
        return False
    return True


def element_of(fmt: AnyFormat) -> Format:
    """Return the element format of a scaled format; a plain format is its own element."""
    return fmt.element if isinstance(fmt, Scaled) else fmt


def _with_words(base: AnyFormat, words: list[str], spec: str) -> Scaled:
    """Return the base format with what the words say about its scales."""
    said: dict[str, Any] = {}
    for word in words:
        read = _read_word(word, spec)
        if not said.keys().isdisjoint(read):
            msg = f"{spec!r} says {' and '.join(said.keys() & read)} twice: expected it once"
            raise ValueError(msg)
        said |= read
    if "scale" in said:
        said = {"rule": usual_rule(said["scale"]), "tensor_scale": None, "scale_min": None} | said
    if isinstance(base, Scaled):
        return replace(base, **said, label="", note="")
    return Scaled(base, **said)


def _read_word(word: str, spec: str) -> dict[str, Any]:
    """Return the fields of `Scaled` that a word sets; raise `ValueError` if it is no such word."""
    if (block := Block.parse(word)) is not None:
        return {"block": block}
    if word == "pow2" or word in set(ScaleRule):
        return {"rule": ScaleRule.RCEIL if word == "pow2" else ScaleRule(word)}
    if word in ("full", "affine"):
        return {"full_range" if word == "full" else word: True}
    if match := _BOUND.fullmatch(word):
        return {match[1]: float(match[2])}
    scale, plus, tensor_scale = word.partition("+")
    names = [ALIASES.get(name, name) for name in (scale, tensor_scale)]
    if isinstance(found := FORMATS.get(names[0]), Format):
        if not plus:
            return {"scale": found}
        if isinstance(second := FORMATS.get(names[1]), Format):
            return {"scale": found, "tensor_scale": second}
    msg = (
        f"unknown word {word!r} in {spec!r}: expected a block (tensor, row or column, 1x128, "
        f"128x128), a scale format (fp32, e8m0, e4m3+fp32), a rule ({', '.join(ScaleRule)}, pow2), "
        "full, affine, amax_min=NUMBER or scale_min=NUMBER"
    )
    raise ValueError(msg)


def _named(scaled: Scaled) -> Scaled:
    """Return the format under a registered name, where it differs by block and rule at most."""
    same = [f.name for f in fields(Scaled) if f.compare and f.name not in ("block", "rule")]
    for known in _SCALED:
        if all(getattr(scaled, name) == getattr(known, name) for name in same):
            words = [known.name]
            words += [str(scaled.block)] if scaled.block != known.block else []
            words += [scaled.rule.value] if scaled.rule is not known.rule else []
            label = ":".join(words)
            return known if label == known.name else replace(scaled, label=label, note=known.note)
    return scaled


def _plain(name: str, spec: str) -> AnyFormat:
    name = ALIASES.get(name, name)
    if name in FORMATS:
        return FORMATS[name]
    if name in _ELEMENTS:  # an element that has no use without a scale
        return Scaled(_ELEMENTS[name])
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
    elif match := _FIXED.fullmatch(name):
        return _fixed_point(name, int(match[1]), int(match[2]))
    near = difflib.get_close_matches(name, [*FORMATS, *ALIASES], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`precsim formats` lists all."
    msg = f"unknown format {spec!r}: {hint} Any e<exp>m<man> works too, e.g. e6m9."
    raise ValueError(msg)


def _fixed_point(name: str, int_bits: int, frac_bits: int) -> Format:
    """Return the fixed-point format of that many bits before (sign included) and after the point."""
    if not (int_bits >= 1 and 2 <= int_bits + frac_bits <= 24):
        msg = f"format {name!r}: fixed point needs its sign bit, and 2 to 24 bits in all"
        raise ValueError(msg)
    return Format(name, 0, int_bits + frac_bits - 1, Specials.FINITE, bias=2 - int_bits)
