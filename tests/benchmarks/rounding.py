"""What rounding costs, per element: ``python -m tests.benchmarks.rounding [--quick]``.

Rounding float32 to a format and back, in place as training does it and into another array, beside
`np.copyto` of the same array (the floor), PyTorch's pair of casts and ml_dtypes' (NumPy's own for
fp16), all into arrays that are there already; for values that are normal, all underflow and all
overflow; with NumPy's kernels, and with the compiled ones where Numba is installed.  All take
turns, one thread each.
"""

import functools
import importlib.util
import itertools
import sys

from tests.benchmarks.measure import medians, one_thread, row, write_table

one_thread()

import numpy as np

import precsim as ps
from precsim.backend import key, tier, words

KINDS = {"normal": 1.0, "underflow": 1e-12, "overflow": 1e12}
FORMATS = ("fp16", "bf16", "tf32", "e4m3", "e5m2", "e3m2", "e2m1")
TORCH = {"fp16": "float16", "bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
ML_DTYPES = {
    "fp16": "float16", "bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2",
    "e2m1": "float4_e2m1fn", "e3m2": "float6_e3m2fn",
}  # fmt: skip
SCALED = {
    "mxfp8_e4m3": "e4m3", "mxfp6_e3m2": "e3m2", "mxfp4": "e2m1", "nvfp4": "e2m1",
    "e4m3:128x128": "e4m3", "e4m3:32x1": "e4m3", "int8:row:affine": "int8",
}  # fmt: skip
COPY_LIMIT = {"fp16": 6, "bf16": 6}
"""Most time of rounding to nearest, as a multiple of a copy's."""
PEER_LIMIT = {"torch": 1 / 3, "ml_dtypes": 1 / 8}
"""The same as a multiple of a peer's pair of casts, for formats of 8 bits and fewer."""
DRAWN_LIMIT, BLOCK_LIMIT = 2, 2.5
"""Most time of stochastic rounding, words drawn before, and of blocks, over rounding to nearest."""
COMPILED_LIMIT, COMPILED_DRAWN_LIMIT = 1.5, 3
"""Most time of compiled kernels, to nearest and stochastically, as a multiple of a copy's."""


@functools.cache
def library(name):
    """Return a library, with one thread, or None where it is not installed."""
    try:
        found = importlib.import_module(name)
    except ImportError:
        return None
    if name == "torch":
        found.set_num_threads(1)
    return found


def casts(fmt, x):
    """Return (encode, decode) by library: functions that make codes of x, and numbers of these."""
    found = {}
    if fmt in TORCH and (torch := library("torch")):
        source, back = torch.from_numpy(x), torch.empty(x.size)
        there = source.to(getattr(torch, TORCH[fmt]))
        found["torch"] = (lambda: there.copy_(source)), (lambda: back.copy_(there))
    if fmt in ML_DTYPES and (ml_dtypes := library("ml_dtypes")):
        home = np if fmt == "fp16" else ml_dtypes
        narrow, out = np.empty(x.size, getattr(home, ML_DTYPES[fmt])), np.empty_like(x)

        def encode():
            with np.errstate(all="ignore"):
                np.copyto(narrow, x, casting="unsafe")

        found["ml_dtypes"] = encode, lambda: np.copyto(out, narrow, casting="unsafe")
    return found


def in_turn(pair):
    """Return a function that does both of a pair."""
    return lambda: (pair[0](), pair[1]())


def tiers():
    """Return what can round here."""
    return ("numpy", "numba") if importlib.util.find_spec("numba") else ("numpy",)


def rounder(way, arrays, fmt, drawn=None):
    """Return a function that rounds so, stochastically if there are words."""
    kernels, place = way
    source, target = arrays[place]
    mode = "nearest" if drawn is None else "stochastic"

    def run():
        with tier(kernels):
            ps.quantize(source, fmt, mode, random=drawn, out=target)

    return run


def scalar_rows(sample, turns):
    """Round to nearest, beside the peers; stochastically, with random words that are there.

    A peer takes turns of its own with what is held against it: peers are slow, and what comes after
    a slow one finds its arrays gone from the caches, and the memory asleep.
    """
    out, work = np.empty_like(sample), np.empty_like(sample)
    drawn = np.random.default_rng(1).integers(0, 1 << 32, sample.size, np.uint32)
    for kind, scale in KINDS.items():
        x = sample * np.float32(scale)
        arrays = {"in place": (work, work), "copying": (x, out)}
        ways = list(itertools.product(tiers(), arrays))

        def measure(functions, x=x):
            found = medians(functions, turns, before=lambda: np.copyto(work, x))
            return {name: seconds / x.size for name, seconds in found.items()}

        for fmt in FORMATS:
            copy = {"np.copyto": lambda x=x: np.copyto(out, x)}
            nearest = {way: rounder(way, arrays, fmt) for way in ways}
            random = {("drawn", *way): rounder(way, arrays, fmt, drawn) for way in ways}
            t = measure(copy | nearest | random)
            for way in ways:
                yield from _floor_rows(t, kind, fmt, way)
            for peer, pair in casts(fmt, x).items():
                t = measure({peer: in_turn(pair)} | nearest)
                limit = PEER_LIMIT[peer] if ps.format(fmt).bits <= 8 else None
                for way in ways:
                    yield row(f"rounding {title(way)}", kind, fmt, t[way], peer=peer,
                              against=t[peer], limit=limit)  # fmt: skip


def _floor_rows(t, kind, fmt, way):
    """Compare one way of rounding with a copy, and its stochastic rounding."""
    copies, random = t["np.copyto"], t["drawn", *way]
    if way[0] == "numba":
        nearest = {"peer": "np.copyto", "against": copies, "limit": COMPILED_LIMIT}
        drawn = nearest | {"limit": COMPILED_DRAWN_LIMIT}
    else:
        nearest = {"peer": "np.copyto", "against": copies, "limit": COPY_LIMIT.get(fmt)}
        drawn = {"peer": "nearest", "against": t[way], "limit": DRAWN_LIMIT}
    yield row(f"rounding {title(way)}", kind, fmt, t[way], **nearest)
    yield row(f"stochastic {title(way)}", kind, fmt, random, **drawn)


def title(way):
    """Return how a way to round, a tier and a place, is called in a table."""
    kernels, place = way
    return f"{place}, compiled" if kernels == "numba" else place


def word_rows(sample, turns):
    """Draw the random words that stochastic rounding takes."""
    size, out, here = sample.size, np.empty_like(sample), key(0, "benchmark", 0, 0)
    t = medians(
        {"copy": lambda: np.copyto(out, sample), "words": lambda: words(here, (size,))}, turns
    )
    yield row("random words", "philox", None, t["words"] / size, peer="np.copyto",
              against=t["copy"] / size)  # fmt: skip


def block_rows(sample, turns):
    """Round in formats that share scales, beside their element format without any."""
    size, out = sample.size, np.empty_like(sample)
    shapes = {"": (size // 1024, 1024), ", ragged": (size // 1000, 1000)}
    for fmt, element in SCALED.items():
        for kind, shape in shapes.items():
            x, target = (a[: shape[0] * shape[1]].reshape(shape) for a in (sample, out))
            functions = {
                "element": lambda x=x, target=target, e=element: ps.quantize(x, e, out=target),
                "blocks": lambda x=x, target=target, fmt=fmt: ps.quantize(x, fmt, out=target),
            }
            t = {name: s / x.size for name, s in medians(functions, turns).items()}
            yield row("blocks", f"normal{kind}", fmt, t["blocks"], peer=element,
                      against=t["element"], limit=BLOCK_LIMIT)  # fmt: skip


def code_rows(sample, turns):
    """Make codes of numbers, and numbers of codes."""
    size, out = sample.size, np.empty_like(sample)
    for fmt in FORMATS:
        codes, peers = ps.encode(sample, fmt), casts(fmt, sample)
        ours = {
            "encode": lambda fmt=fmt: ps.encode(sample, fmt),
            "decode": lambda fmt=fmt, codes=codes: ps.decode(codes, fmt, np.float32),
        }
        theirs = {
            f"{peer} {case}": function
            for peer, pair in peers.items()
            for case, function in zip(ours, pair, strict=True)
        }
        functions = {"np.copyto": lambda: np.copyto(out, sample), **ours, **theirs}
        t = {name: s / size for name, s in medians(functions, turns).items()}
        for case in ours:
            for peer in ("np.copyto", *peers):
                against = t.get(f"{peer} {case}", t["np.copyto"])
                yield row("codes", case, fmt, t[case], peer=peer, against=against)


def rows(quick: bool) -> list[dict]:
    """Measure and return plain rows, seconds an element; `quick` takes a sixteenth of them.

    With NumPy alone, and what compiled kernels round once more where Numba is installed.
    """
    sample = np.random.default_rng(0).standard_normal(1 << (18 if quick else 22), np.float32)
    turns = 5 if quick else 7
    with tier("numpy"):
        parts = (scalar_rows, word_rows, block_rows, code_rows)
        found = [measured for part in parts for measured in part(sample, turns)]
    if "numba" in tiers():
        with tier("numba"):
            compiled = list(block_rows(sample, turns))
        found += [r | {"table": f"{r['table']}, compiled"} for r in compiled]
    return found


if __name__ == "__main__":
    write_table(rows("--quick" in sys.argv), sys.stdout)
