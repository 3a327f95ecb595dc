"""What exception accounting costs beside rounding alone: ``python tests/benchmarks/accounting.py``.

Nanoseconds per element, the best of many runs, on 2^18 elements (they stay in a cache), for data
that is normal, subnormal, underflows or overflows in the format.
"""

import sys
import time

import numpy as np

import precsim as ps

KINDS = {"normal": 1.0, "subnormal": 1e-6, "underflow": 1e-9, "overflow": 1e6}


def best(function, runs=40):
    """Return the shortest time of many, in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    """Print a table: carrier, format, data, quantize, quantize_counted, their ratio."""
    sys.stdout.write("carrier format data       quantize counted  ratio\n")
    for carrier in ("float32", "float64"):
        sample = np.random.default_rng(0).standard_normal(1 << 18).astype(carrier)
        for fmt in ("fp16", "bf16", "e4m3"):
            for kind, scale in KINDS.items():
                x = sample * np.dtype(carrier).type(scale)
                plain = best(lambda x=x, fmt=fmt: ps.quantize(x, fmt)) / x.size * 1e9
                counted = best(lambda x=x, fmt=fmt: ps.quantize_counted(x, fmt)) / x.size * 1e9
                row = f"{carrier} {fmt:6} {kind:10} {plain:5.2f} ns {counted:5.2f} ns"
                sys.stdout.write(f"{row} {counted / plain:6.2f}\n")


if __name__ == "__main__":
    main()
