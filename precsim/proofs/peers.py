"""Who disagrees with whom, and why: every installed library on the inputs of the quick proof.

Each library rounds the same inputs to nearest, from float32 and from float64.  Differences are
counted by class of input, with one example, and explained by the first fitting entry of `REASONS`.
One that no entry explains is a finding: either the library changed, or precsim is wrong.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim import testing
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Rounding
from precsim.formats.quantize import quantize
from precsim.proofs import stratified

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Peer:
    """A library: its name for each format that it has, and how it rounds an array.

    `cast(x, fmt, rounding)` returns float64; `roundings` lists the modes that it offers.
    """

    name: str
    version: str
    formats: Mapping[str, str]
    cast: Callable[[Array, Format, Rounding], Array]
    roundings: tuple[Rounding, ...] = (Rounding.NEAREST,)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Difference:
    """One class of inputs on which a library and precsim differ, in one format and mode."""

    peer: str
    format: str
    rounding: str
    carrier: str
    inputs: str
    tried: int
    differ: int
    example: float
    theirs: float
    ours: float
    why: str | None


@dataclass(frozen=True)
class Comparison:
    """What comparing one library with precsim in one format and mode came to."""

    peer: str
    format: str
    rounding: str
    tried: int
    differences: tuple[Difference, ...]


TWICE = "goes through float32: beside a midpoint, that rounds twice"
SATURATES = "saturates, infinity too (2.13 on a CPU): as overflow='saturate' does here"
NO_NAN = "the format has no NaN"
TIES = "breaks ties to the even code; precsim, ml_dtypes and torch go up"
UPWARDS = "rounds all that lies between 2^-127 and 2^-126 up"

REASONS: tuple[tuple[str, str, str, str], ...] = (
    # library, its formats, inputs (float32 ones, or float64 numbers that float32 has not), why
    ("ml_dtypes", "e3m2 e2m3 e2m1", "float32 NaN", f"{NO_NAN}: it gives -0, precsim +0"),
    ("ml_dtypes", "e8m0", "float32 zero", "the format has no zero: it gives NaN, precsim 2^-127"),
    ("ml_dtypes", "e8m0", "float* below normal", UPWARDS),
    ("ml_dtypes", "e8m0", "float64 below float32", "goes through float32, where it finds 0: NaN"),
    ("ml_dtypes", "*", "float64 *", TWICE),
    ("torch", "e4m3", "float32 overflow", SATURATES),
    ("torch", "e4m3", "float32 infinity", SATURATES),
    ("torch", "e4m3", "float64 overflow", SATURATES),
    ("torch", "e8m0", "float* negative", "ignores the sign; precsim and ml_dtypes give NaN"),
    ("torch", "e8m0", "float* below normal", UPWARDS),
    ("torch", "*", "float64 *", TWICE),
    ("gfloat", "e3m2 e2m3 e2m1", "float32 NaN", f"{NO_NAN}: it keeps it all the same"),
    (
        "gfloat",
        "e8m0",
        "float32 normal",
        TIES,
    ),
    (
        "gfloat",
        "e8m0",
        "float32 overflow",
        TIES,
    ),
    ("gfloat", "e8m0", "*", "knows no range: neither the sign, nor zero, nor 2^-127 ends it"),
)
"""What is known of the libraries, from their sources and issue trackers; the first that fits."""


def compare(peers: Sequence[Peer] | None = None) -> Iterator[Comparison]:
    """Compare every installed library in every format and mode that it shares with precsim."""
    for peer in installed() if peers is None else peers:
        for fmt in testing.GRIDS:
            if fmt.name in peer.formats:
                for rounding in peer.roundings:
                    yield _compare(peer, fmt, rounding)


def _compare(peer: Peer, fmt: Format, rounding: Rounding) -> Comparison:
    tried, differences = 0, []
    for x in (stratified.inputs(fmt, np.float32), _only_float64(stratified.inputs(fmt))):
        with np.errstate(all="ignore"):
            theirs = peer.cast(x, fmt, rounding)
            ours = quantize(x, fmt, rounding).astype(np.float64)
        wrong = (theirs != ours) | (np.signbit(theirs) != np.signbit(ours))
        wrong &= ~(np.isnan(theirs) & np.isnan(ours))
        tried += x.size
        for kind, here in _classes(x, fmt):
            found = np.flatnonzero(wrong & here)
            if found.size:
                at = found[_most_ordinary(x[found])]
                difference = Difference(
                    str(peer), fmt.name, rounding.value, x.dtype.name, kind, int(here.sum()),
                    int(found.size), float(x[at]), float(theirs[at]), float(ours[at]),
                    why(peer.name, fmt.name, f"{x.dtype.name} {kind}"),
                )  # fmt: skip
                differences.append(difference)
    return Comparison(str(peer), fmt.name, rounding.value, tried, tuple(differences))


def _only_float64(x: Array) -> Array:
    """Return those numbers that float32 does not have."""
    with np.errstate(all="ignore"):
        return x[np.isfinite(x) & (x.astype(np.float32) != x)]  # type: ignore[no-any-return]


def _classes(x: Array, fmt: Format) -> Iterator[tuple[str, Array]]:
    """Yield the classes of inputs and who is in them; everybody is in one."""
    size = np.abs(x)
    left = np.ones(x.shape, bool)
    for kind, here in (
        ("NaN", np.isnan(x)),
        ("zero", x == 0),
        ("negative", (x < 0) & (not fmt.signed)),
        ("infinity", np.isinf(x)),
        ("overflow", size > fmt.max),
        ("below float32", size < 2.0**-149),
        ("below normal", size < fmt.smallest_normal * (1 if fmt.has_zero else 2)),
        ("normal", left),
    ):
        yield kind, here & left
        left = left & ~here


def _most_ordinary(x: Array) -> int:
    """Return the index of the number nearest to 1 in size, a positive one if there is a choice."""
    with np.errstate(all="ignore"):
        distance = np.abs(np.log2(np.abs(x.astype(np.float64))))
    return int(np.lexsort((np.signbit(x), distance))[0])


def why(peer: str, fmt: str, inputs: str) -> str | None:
    """Return the known reason of a difference, or None."""
    for library, formats, pattern, reason in REASONS:
        if (
            library == peer
            and fnmatchcase(inputs, pattern)
            and (formats == "*" or fmt in formats.split())
        ):
            return reason
    return None


@dataclass(frozen=True)
class Disagreement:
    """All differences of one library that have the same reason; `why` None is a finding."""

    peer: str
    why: str | None
    formats: tuple[str, ...]
    roundings: tuple[str, ...]
    inputs: tuple[str, ...]
    tried: int
    differ: int
    example: Difference

    def to_dict(self) -> dict[str, Any]:
        """Return the disagreement as plain data."""
        return asdict(self)


def disagreements(comparisons: Iterable[Comparison]) -> list[Disagreement]:
    """Gather the differences by library and reason, in the order in which they appear."""
    groups: dict[tuple[str, str | None], list[Difference]] = {}
    for comparison in comparisons:
        for difference in comparison.differences:
            groups.setdefault((difference.peer, difference.why), []).append(difference)
    return [
        Disagreement(
            peer,
            reason,
            tuple(dict.fromkeys(d.format for d in found)),
            tuple(dict.fromkeys(d.rounding for d in found)),
            tuple(dict.fromkeys(f"{d.carrier} {d.inputs}" for d in found)),
            sum(d.tried for d in found),
            sum(d.differ for d in found),
            found[_most_ordinary(np.array([d.example for d in found]))],
        )
        for (peer, reason), found in groups.items()
    ]


def installed() -> list[Peer]:
    """Return the libraries that can be imported here: NumPy always, the others where they are."""
    found = []
    for name, make in _MAKERS.items():
        try:
            library = importlib.import_module(name)
        except ImportError:  # `missing` names it
            continue
        found.append(make(library, importlib.metadata.version(name)))
    return found


def missing() -> list[str]:
    """Return the names of the libraries that are not compared here."""
    here = {peer.name for peer in installed()}
    return [name for name in _MAKERS if name not in here]


ML_DTYPES = MappingProxyType({
    "bf16": "bfloat16", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn", "e4m3_ieee": "float8_e4m3",
    "e3m4": "float8_e3m4", "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz",
    "e4m3b11fnuz": "float8_e4m3b11fnuz", "e3m2": "float6_e3m2fn", "e2m3": "float6_e2m3fn",
    "e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu",
})  # fmt: skip
TORCH = MappingProxyType({
    "fp16": "float16", "bf16": "bfloat16", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn",
    "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz", "e8m0": "float8_e8m0fnu",
})  # fmt: skip
GFLOAT_MODES = MappingProxyType({
    Rounding.NEAREST: "TiesToEven", Rounding.NEAREST_AWAY: "TiesToAway",
    Rounding.TOWARD_ZERO: "TowardZero", Rounding.UP: "TowardPositive",
    Rounding.DOWN: "TowardNegative",
})  # fmt: skip


def _numpy(library: Any, version: str) -> Peer:
    def cast(x: Array, fmt: Format, rounding: Rounding) -> Array:
        return x.astype(np.float16).astype(np.float64)

    return Peer("numpy", version, {"fp16": "float16"}, cast)


def _ml_dtypes(library: Any, version: str) -> Peer:
    def cast(x: Array, fmt: Format, rounding: Rounding) -> Array:
        return x.astype(getattr(library, ML_DTYPES[fmt.name])).astype(np.float64)

    known = {ours: theirs for ours, theirs in ML_DTYPES.items() if hasattr(library, theirs)}
    return Peer("ml_dtypes", version, known, cast)


def _torch(library: Any, version: str) -> Peer:
    def cast(x: Array, fmt: Format, rounding: Rounding) -> Array:
        narrow = library.from_numpy(x).to(getattr(library, TORCH[fmt.name]))
        return narrow.to(library.float64).numpy()  # type: ignore[no-any-return]

    known = {ours: theirs for ours, theirs in TORCH.items() if hasattr(library, theirs)}
    return Peer("torch", version, known, cast)


def _gfloat(library: Any, version: str) -> Peer:
    """Gfloat takes formats as data, so it can be given all of precsim's but integers."""

    def cast(x: Array, fmt: Format, rounding: Rounding) -> Array:
        mode = library.RoundMode[GFLOAT_MODES[rounding]]
        got = library.round_ndarray(describe(library, fmt), x, mode, sat=not fmt.has_nan)
        return np.asarray(got, np.float64)

    known = {f.name: f.name for f in testing.GRIDS if f.bits <= 16 and not f.is_integer}
    return Peer("gfloat", version, known, cast, tuple(GFLOAT_MODES))


def describe(gfloat: Any, fmt: Format) -> Any:
    """Return a format in gfloat's terms."""
    nans = {Specials.IEEE: 2**fmt.man_bits - 1, Specials.FN: 1}.get(fmt.specials, 0)
    if not fmt.has_zero:
        return importlib.import_module("gfloat.formats").format_info_ocp_e8m0
    return gfloat.FormatInfo(
        fmt.name, fmt.bits, fmt.precision, bias=fmt.bias, is_signed=fmt.signed, num_high_nans=nans,
        domain=gfloat.Domain.Extended if fmt.has_inf else gfloat.Domain.Finite,
        has_nz=fmt.has_negative_zero, has_subnormals=fmt.subnormals, is_twos_complement=False,
    )  # fmt: skip


_MAKERS: Mapping[str, Callable[[Any, str], Peer]] = {
    "numpy": _numpy, "ml_dtypes": _ml_dtypes, "torch": _torch, "gfloat": _gfloat,
}  # fmt: skip
"""The libraries that are known, by the name that they are imported under."""
