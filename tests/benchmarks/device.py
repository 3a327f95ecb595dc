"""What emulation costs on a GPU: ``python -m tests.benchmarks.device [--quick]``; 2 without one.

Rounding, and counting what it did, beside a copy: the share of the copy's bandwidth that is reached,
counting the bytes that have to be moved (values in and out, and random words in).  Then a training
step of GPT-2's smallest size, 124 M parameters, in emulated e4m3, with and without counters, beside
the same step in float32, by CuPy alone and by PyTorch where it is installed and sees the GPU.  Times
are the wall clock's, from and to an idle device: medians of turns.

No GPU has run this yet.
"""

import importlib.util
import math
import sys
import time
from statistics import median

from tests.benchmarks.measure import one_thread

one_thread()

import numpy as np

import precsim as ps
from precsim.backend import BackendError, get_backend, key, words
from precsim.engine.tally import Tally
from precsim.formats.kernels import round_into
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.scaled import Scaled
from tests.benchmarks.step import RATE, SCALE, Model

SIZE, SMALL_SIZE = 1 << 26, 1 << 22
FORMATS = ("bf16", "fp16", "e4m3", "e2m1")
SCALED = ("mxfp8_e4m3", "mxfp4", "nvfp4", "e4m3:128x128", "int8:row")
GPT = ps.GPTConfig(layers=12, heads=12, width=768, context=1024, vocabulary=50257, tied=True)
SMALL_GPT = ps.GPTConfig(layers=2, heads=4, width=128, context=128, vocabulary=512, tied=True)


def seconds(functions, wait, turns):
    """Return the median wall-clock seconds of each; a turn before the first is not counted."""
    times = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, function in functions.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: median(found[1:]) for name, found in times.items()}


def passes(cupy, size):
    """Yield (what, format, bytes moved, what does it) for arrays of `size` float32 values."""
    x = cupy.asarray(np.random.default_rng(0).standard_normal((size // 1024, 1024), np.float32))
    out = cupy.empty_like(x)
    here = key(0, "device", 0, 0)
    drawn = words(here, x.shape, xp=cupy)
    yield "copy", "", 8, lambda: cupy.copyto(out, x)
    yield "random words", "", 4, lambda: words(here, x.shape, xp=cupy)
    for name in FORMATS:
        fmt = ps.format(name)
        overflow = Overflow.IEEE if fmt.has_nan else Overflow.SATURATE
        dtype = x.dtype

        def nearest(watch=None, fmt=fmt, overflow=overflow):
            round_into(x, out, fmt, Rounding.NEAREST, overflow, None, watch)

        def stochastic(fmt=fmt, overflow=overflow):
            round_into(x, out, fmt, Rounding.STOCHASTIC, overflow, drawn)

        def watched(run=nearest, fmt=fmt, dtype=dtype):
            run(Tally(fmt, dtype, histogram=True))

        def counting(fmt=fmt):
            Tally.of(x, out, fmt, histogram=True)

        yield "nearest", name, 8, nearest
        yield "stochastic", name, 12, stochastic
        yield "nearest and counters", name, 8, watched
        yield "counters alone", name, 8, counting
    for name in SCALED:
        fmt = ps.format(name)
        assert isinstance(fmt, Scaled)
        yield "blocks", name, 8, lambda fmt=fmt: ps.quantize(x, fmt, out=out)


def bandwidth(cupy, size, turns):
    """Return lines about every pass over `size` values."""
    found = list(passes(cupy, size))
    wait = cupy.cuda.runtime.deviceSynchronize
    t = seconds({i: run for i, (*_, run) in enumerate(found)}, wait, turns)
    copied = found[0][2] * size / t[0]
    lines = [
        f"{size:,} float32 values",
        f"{'':<24}{'format':<16}{'time':>11}{'GB/s':>9}  of a copy's",
    ]
    for i, (what, name, moved, _) in enumerate(found):
        rate = moved * size / t[i]
        lines.append(
            f"{what:<24}{name:<16}{t[i] * 1e3:>8.3f} ms{rate / 1e9:>9.0f}{rate / copied:>11.0%}"
        )
    return lines


def on_device(fmt, config, batch, observers=()):
    """Return a step of the model in CuPy, and the model."""
    with ps.using(backend="cupy"):
        model = Model(fmt, "fast", config, batch, observers)

    def step():
        with ps.using(backend="cupy"):
            model.step()
        for observer in observers:
            observer.drain()

    return step, model


def in_torch(model):
    """Return the same step in PyTorch's float32 on the GPU, or None where it sees none."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from tests.benchmarks.torch_step import Model as Peer

    start = {name: p.numpy() for name, p in model.model.parameters.items()}
    torch.backends.cuda.matmul.allow_tf32 = False
    theirs = Peer(model.config, start, None, RATE, SCALE, device="cuda")

    def step():
        theirs.step(*model.tokens())
        torch.cuda.synchronize()

    return step


def training(cupy, config, batch, turns):
    """Return lines about a training step."""
    step, model = on_device("fp32", config, batch)
    functions = {"CuPy, float32": step}
    functions["precsim, e4m3"] = on_device("e4m3", config, batch)[0]
    functions["precsim, e4m3, counters"] = on_device("e4m3", config, batch, [ps.Counters()])[0]
    if peer := in_torch(model):
        functions["PyTorch, float32"] = peer
    t = seconds(functions, cupy.cuda.runtime.deviceSynchronize, turns)
    millions = sum(math.prod(shape) for shape in config.shapes().values()) / 1e6
    lines = [f"a step of {millions:.0f} M parameters, {batch} texts of {config.context} tokens"]
    plain = t["CuPy, float32"]
    lines += [
        f"{name:<40}{value * 1e3:>8.1f} ms{value / plain:>9.2f} times CuPy's float32"
        for name, value in t.items()
    ]
    return lines if peer else [*lines, "PyTorch sees no GPU here: nothing beside it"]


def main(arguments):
    """Measure and print; return the exit code."""
    try:
        cupy = get_backend("cupy")
    except BackendError as error:
        sys.stderr.write(f"no GPU to measure here: {error}\n")
        return 2
    quick = "--quick" in arguments
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    size, turns = (SMALL_SIZE, 5) if quick else (SIZE, 21)
    config, batch = (SMALL_GPT, 2) if quick else (GPT, 4)
    sys.stdout.write(f"{name}, CuPy {cupy.__version__}, NumPy {np.__version__}\n\n")
    sys.stdout.write("\n".join(bandwidth(cupy, size, turns)) + "\n\n")
    sys.stdout.write("\n".join(training(cupy, config, batch, turns)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
