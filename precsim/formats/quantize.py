"""`quantize`: any array onto any format's grid, with every choice named."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.arrays import Array, array_module, as_float
from precsim.formats.blocks import quantize_into
from precsim.formats.kernels import round_into
from precsim.formats.modes import Mode, Overflow, Rounding, rounding_mode, stochastic
from precsim.formats.profiles import Cast, Profile, round_as
from precsim.formats.profiles import profile as find_profile
from precsim.formats.registry import AnyFormat, format
from precsim.formats.scaled import Scaled


def quantize(
    x: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Array | np.random.Generator | int | None = None,
    out: Array | None = None,
    profile: str | Profile | None = None,
) -> Array:
    """Round every element of x to a value of the format; float32 stays float32.

    NaN stays NaN (formats without NaN: +0); infinities and values that round beyond `max` follow
    `overflow` (None: "ieee" where the format has an infinity or a NaN, else "saturate"); -0 stays
    -0 where the format has it; a value that rounds to zero keeps its sign.  In a scaled format
    elements saturate whatever `overflow` says, and a NaN or an infinity makes its block NaN (see
    `precsim.formats.scaled.Scaled`).

    x: any shape; float32 and float64 are rounded in place of a copy (`out` is made where it is
    None; it may be x itself, or overlap it, which costs a copy of x); anything else real becomes
    float64; a scalar gives a scalar.
    `rounding` is a `Rounding`, a `Stochastic` or the name of one ("up", "stochastic_a8").
    `random` serves the stochastic ones: uint32 words of x's shape (word w stands for the fraction
    (w + 1/2) / 2^32, and x goes up iff that is less than its distance from the lower neighbour,
    in units of the gap), or a NumPy Generator or an integer seed to draw them from.

    `profile` ("ocp", "ocp-saturate", "ml_dtypes", "torch-2.13", "transformer-engine", "torchao")
    does as that library does in all of this, mistakes included (see `precsim.formats.profiles`).

    Raises `ValueError` for an unknown format, rounding, overflow or profile, for a format that x's
    dtype cannot carry (fp64 in float32), for an `out` of another shape or dtype or that cannot be
    written to, for stochastic rounding without `random`, and for a profile that does not know the
    format, or together with a rounding or an overflow.
    """
    fmt, cast = format(fmt), None
    if profile is not None:
        fmt, cast = conforming(fmt, profile, rounding, overflow)
    mode, beyond = resolve_modes(fmt, rounding, overflow)
    x = as_float(x)
    xp = array_module(x)
    source = xp.asarray(x, order="C")
    target = xp.empty_like(source) if out is None else out
    if out is not None:
        _check_out(out, x)
        if out is not source and xp.may_share_memory(source, out):
            source = source.copy()  # or some of it were overwritten before it is read
    words = random_words(x, random) if stochastic(mode) else None
    if isinstance(fmt, Scaled):
        quantize_into(source, target, fmt, mode, words)
    elif cast is not None:
        round_as(source, target, fmt, cast)
    else:
        round_into(source, target, fmt, mode, beyond, words)
    return target if target.ndim or out is not None else target[()]


def _check_out(out: Any, x: Array) -> None:
    """Raise `ValueError` where `out` cannot take what x becomes."""
    wanted = f"out must be C-contiguous {x.dtype} of shape {x.shape}"
    if not hasattr(out, "dtype"):
        msg = f"{wanted}; got {out!r:.60}"
        raise ValueError(msg)
    if out.shape != x.shape or out.dtype != x.dtype or not out.flags.c_contiguous:
        msg = f"{wanted}; got {out.dtype} of shape {out.shape}"
        raise ValueError(msg)
    if not getattr(out.flags, "writeable", True):  # CuPy's arrays all are
        msg = f"{wanted} that can be written to; got one that is read-only"
        raise ValueError(msg)


def conforming(
    fmt: AnyFormat, profile: str | Profile, rounding: str | Mode, overflow: str | Overflow | None
) -> tuple[AnyFormat, Cast | None]:
    """Return a scaled format with the library's scales, or how it rounds to a plain format.

    Raises `ValueError` where another argument contradicts the profile.
    """
    found = find_profile(profile)
    if rounding_mode(rounding) is not Rounding.NEAREST or overflow is not None:
        msg = f"profile {found.name!r} decides on rounding and overflow: expected neither beside it"
        raise ValueError(msg)
    return (found.scaled(fmt), None) if isinstance(fmt, Scaled) else (fmt, found.cast(fmt))


def resolve_modes(
    fmt: AnyFormat, rounding: str | Mode, overflow: str | Overflow | None
) -> tuple[Mode, Overflow]:
    """Resolve names and the default overflow; a wrong name raises with the list of right ones."""
    element = fmt.element if isinstance(fmt, Scaled) else fmt
    beyond = Overflow.IEEE if overflow is None else Overflow(overflow)
    return rounding_mode(rounding), beyond if element.has_nan else Overflow.SATURATE


def random_words(x: Array, random: Array | np.random.Generator | int | None) -> Array:
    """Return the uint32 words that decide stochastic rounding, one per element of x."""
    if random is None:
        msg = "stochastic rounding needs `random`: a seed, a NumPy Generator, or uint32 words"
        raise ValueError(msg)
    if isinstance(random, int | np.integer | np.random.Generator):
        generator = np.random.default_rng(random)
        return generator.integers(0, 1 << 32, x.shape, dtype=np.uint32)
    words: Any = random
    if not hasattr(words, "dtype"):
        msg = f"`random` must be a seed, a NumPy Generator, or uint32 words; got {words!r:.60}"
        raise ValueError(msg)
    if words.dtype != np.uint32 or words.shape != x.shape:
        msg = (
            f"random words must be uint32 of shape {x.shape}; "
            f"got {words.dtype} of shape {words.shape}"
        )
        raise ValueError(msg)
    return array_module(x).ascontiguousarray(words)  # type: ignore[no-any-return]
