"""What narrow accumulators cost: ``python -m tests.benchmarks.accumulators [--quick]``.

A product of 1024 x K by K x 256 whose total is rounded after every product, or after 128 of them,
beside the same product as BLAS computes it, in float32 and in float64, with NumPy's kernels and with
the compiled ones.
"""

import importlib.util
import sys

from tests.benchmarks.measure import medians, one_thread, row, write_table

one_thread()

import numpy as np

from precsim.backend import tier
from precsim.engine.arithmetic import Arithmetic
from precsim.engine.pool import Pool
from precsim.engine.precision import Accumulator

CASES = {
    1: (64, ("fp16", "bf16", "e8m13:toward_zero")),
    128: (512, ("fp16/128", "e8m13:toward_zero/128>fp32@128")),
}
"""Products between two roundings; the length of the contraction, and the accumulators."""
CHUNK_LIMIT = 1.5
"""Most time of rounding after 128 products, as a multiple of the product's alone."""


def product(kernels, a, b, accumulator, pool):
    """Return a function that multiplies."""
    unit = None if accumulator is None else Accumulator.parse(accumulator)
    arithmetic = Arithmetic(np, a.dtype, unit, pool=pool)

    def run():
        with tier(kernels), np.errstate(all="ignore"):
            arithmetic.matmul(a, b)

    return run


def rows(quick: bool) -> list[dict]:
    """Measure and return plain rows, seconds a product; `quick` takes a quarter of its rows."""
    random, pool, found = np.random.default_rng(0), Pool(), []
    tiers = ("numpy", "numba") if importlib.util.find_spec("numba") else ("numpy",)
    for carrier in ("float32", "float64"):
        for every, (length, accumulators) in CASES.items():
            a = random.standard_normal((256 if quick else 1024, length)).astype(carrier)
            b = random.standard_normal((length, 256)).astype(carrier)
            functions = {"matmul": product("numpy", a, b, None, pool)}
            for name in accumulators:
                for kernels in tiers:
                    functions[name, kernels] = product(kernels, a, b, name, pool)
            t = medians(functions, 5 if quick else 9)
            for name, kernels in list(functions)[1:]:
                compiled = ", compiled" if kernels == "numba" else ""
                found.append(
                    row(f"accumulator{compiled}", f"after {every}, {carrier}",
                        Accumulator.parse(name).format,
                        t[name, kernels], peer="matmul", against=t["matmul"],
                        limit=CHUNK_LIMIT if every > 1 else None)
                )  # fmt: skip
    return found


if __name__ == "__main__":
    write_table(rows("--quick" in sys.argv), sys.stdout)
