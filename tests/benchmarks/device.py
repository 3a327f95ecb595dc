"""What emulation costs on a GPU, and whether it has the host's bits; 2 without one.

    python -m tests.benchmarks.device [--quick] [--only PART ...] [--json FILE]

bandwidth: rounding, and counting what it did, beside a copy: the share of the copy's bandwidth that
is reached, counting the bytes that have to be moved (values in and out, and random words in).
bits: whether rounding, counts, random words and narrow products are the host's.  training: a step of
GPT-2's smallest size, 124 M parameters, every op rounded to e4m3, with and without counters, beside
the same step in float32, by CuPy alone and by PyTorch where it is installed and sees the GPU.  runs:
hashes of every op, host against GPU, and replays of each on the other.

Times are the wall clock's, from and to an idle device: medians of turns.  Every line is printed as
it is measured, and after every line all of them are in FILE; what needs more memory than there is
says so, and the rest goes on.  All parts take about 8 minutes, --quick one.

No GPU has run this yet.
"""

import argparse
import gc
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
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
from tests.benchmarks import device_bits
from tests.benchmarks.step import RATE, SCALE, Model

SIZE, SMALL_SIZE = 1 << 26, 1 << 22
FORMATS = ("bf16", "fp16", "e4m3", "e2m1")
SCALED = ("mxfp8_e4m3", "mxfp4", "nvfp4", "e4m3:128x128", "int8:row")
GPT = ps.GPTConfig(layers=12, heads=12, width=768, context=1024, vocabulary=50257, tied=True)
SMALL_GPT = ps.GPTConfig(layers=2, heads=4, width=128, context=128, vocabulary=512, tied=True)


BANDWIDTH_TARGETS = {"nearest": 0.8, "stochastic": 0.8, "nearest and counters": 0.6}
"""Least share of a copy's bandwidth."""
TRAINING_TARGET = 3.0
"""Most time of a step with every op rounded, as a multiple of PyTorch's float32."""


def seconds(function, wait, turns):
    """Return the median wall-clock seconds; a turn before the first is not counted."""
    times = []
    for _ in range(turns + 1):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def measured(function, cupy, turns):
    """Return {"seconds": ...}, or {"failed": ...} where the device has too little memory."""
    try:
        return {"seconds": seconds(function, cupy.cuda.runtime.deviceSynchronize, turns)}
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # CuPy runs out of memory with one, PyTorch another
        return {"failed": f"{type(error).__name__}: {error}"[:100]}


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


def bandwidth(cupy, quick):
    """Yield a row for every pass over an array; the copy is measured again before each."""
    size, turns = (SMALL_SIZE, 5) if quick else (SIZE, 21)
    copy = None
    for what, name, moved, run in passes(cupy, size):
        copy = copy or run
        copied = 8 * size / seconds(copy, cupy.cuda.runtime.deviceSynchronize, turns)
        row = {"what": what, "format": name, "values": size} | measured(run, cupy, turns)
        if "seconds" in row:
            rate = moved * size / row["seconds"]
            row |= {"bytes_per_second": rate, "share": rate / copied}
            if target := BANDWIDTH_TARGETS.get(what):
                row |= {"target": target, "reached": row["share"] >= target}
        yield row


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


def training(cupy, quick):
    """Yield a row for every way to do a training step, PyTorch's first; one model at a time."""
    config, batch, turns = (SMALL_GPT, 2, 3) if quick else (GPT, 4, 7)
    size = sum(math.prod(shape) for shape in config.shapes().values())

    def torchs():
        return in_torch(Model("fp32", "fast", config, batch))

    ways = {
        "PyTorch, float32": torchs,
        "CuPy, float32": lambda: on_device("fp32", config, batch)[0],
        "precsim, e4m3": lambda: on_device("e4m3", config, batch)[0],
        "precsim, e4m3, counters": lambda: on_device("e4m3", config, batch, [ps.Counters()])[0],
        "precsim, mxfp8_e4m3": lambda: on_device("mxfp8_e4m3", config, batch)[0],
    }
    peer = None
    for name, make in ways.items():
        row = {"what": name, "format": "", "parameters": size, "texts": batch}
        try:
            step = make()
        except (MemoryError, RuntimeError) as error:
            yield row | {"failed": f"{type(error).__name__}: {error}"[:100]}
            continue
        if step is None:
            yield row | {"failed": "PyTorch sees no GPU here: nothing to hold the rest against"}
            continue
        row |= measured(step, cupy, turns)
        del step
        _make_room(cupy)
        if "seconds" in row:
            peer = row["seconds"] if make is torchs else peer
            if peer and make is not torchs:
                row["ratio"] = row["seconds"] / peer
                if name == "precsim, e4m3":
                    row |= {"target": TRAINING_TARGET, "reached": row["ratio"] <= TRAINING_TARGET}
        yield row


def _make_room(cupy):
    """Give back what CuPy and PyTorch keep for their next arrays."""
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


PARTS = {
    "bandwidth": bandwidth,
    "bits": device_bits.bits,
    "training": training,
    "runs": device_bits.runs,
}


def line(row):
    """Return a row as a line to read."""
    text = f"  {row['what']:<28}{row['format']:<34}"
    if "failed" in row:
        return text + row["failed"]
    if "differ" in row:
        verdict = f"{row['differ']:>6} of {row['of']:,} differ"
        return f"{text}{verdict}  {row.get('says', '')}".rstrip()
    text += f"{row['seconds'] * 1e3:>10.3f} ms"
    if "share" in row:
        text += f"{row['bytes_per_second'] / 1e9:>8.0f} GB/s{row['share']:>6.0%} of a copy's"
    if "ratio" in row:
        text += f"{row['ratio']:>8.2f} times PyTorch's float32"
    if "reached" in row:
        text += f"  target {row['target']:g}: {'reached' if row['reached'] else 'missed'}"
    return text


def main(arguments):
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.device")
    parser.add_argument("--quick", action="store_true", help="smaller arrays, fewer turns")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    wanted = parser.parse_args(arguments)
    try:
        cupy = get_backend("cupy")
    except BackendError as error:
        sys.stderr.write(f"no GPU to measure here: {error}\n")
        return 2
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    versions = {"device": name, "cupy": cupy.__version__, "numpy": np.__version__}
    found = versions | {"quick": wanted.quick, "rows": []}
    _say(f"{name}, CuPy {cupy.__version__}, NumPy {np.__version__}")
    for part in wanted.only or PARTS:
        began = time.perf_counter()
        _say(f"\n{part}")
        for row in _rows(PARTS[part], cupy, wanted.quick):
            _say(line(row))
            found["rows"].append({"part": part} | row)
            if wanted.json:
                wanted.json.write_text(json.dumps(found, indent=1) + "\n")
        _say(f"  ({time.perf_counter() - began:.0f} s)")
    return 0


def _say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _rows(part, cupy, quick):
    """Yield a part's rows; a part that fails is one row more, and the next one has its turn."""
    try:
        yield from part(cupy, quick)
    except Exception as error:  # noqa: BLE001  (a machine is lent for minutes: the rest goes on)
        yield {"what": "failed", "format": "", "failed": f"{type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
