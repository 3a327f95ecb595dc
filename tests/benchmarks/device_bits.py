"""Whether a GPU has the host's bits: the parts "bits" and "runs" of `tests.benchmarks.device`.

Rounding, random words, counting and narrow products are integer arithmetic, or IEEE 754's own, and
must agree to the bit.  Ops may not: a device adds up in another order, and its exp and tanh have
other last bits.  In exact arithmetic that shows in the last of float64's 53 bits, which rounding to a
narrow format hides but for odds of one in billions; each op is held to the host's by itself, on the
same inputs, so that nobody has to guess what a different hash comes from.
"""

import contextlib
import io
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import precsim as ps
from precsim import testing
from precsim.backend import key, to_numpy, words
from precsim.cli import main as precsim_main
from precsim.engine.arithmetic import Arithmetic
from precsim.engine.precision import Accumulator
from precsim.engine.tally import Tally
from precsim.engine.tape import OPS
from precsim.formats.accounting import quantize_counted
from precsim.formats.format import Format
from precsim.formats.modes import Rounding
from precsim.formats.registry import FORMATS
from precsim.runs.replay import replay

STRIDE, QUICK_STRIDE = 1021, 1_048_573
"""Of float32's 2^32 bit patterns, every so manieth is rounded."""
EXTRA = ("int8:row:affine", "nvfp4:tensor", "e4m3:delayed", "e4m3:128x128", "int8:row", "fp16_ftz")
COUNTED = ("zeros", "flushed", "subnormal", "overflowed", "saturated", "nan", "nonfinite_in",
           "inexact", "amax", "amin")  # fmt: skip
POLICIES = ("fp32", "bf16", "activations=fp16 gradients=fp16", "e4m3", "activations=int8:row")
RUN = {
    "data": "zen", "layers": 2, "heads": 2, "width": 32, "context": 32, "batch": 4, "steps": 3,
    "checkpoint_every": 1, "eval_every": 3, "observe": "counts",
}  # fmt: skip


def differing(got, expected):
    """Return how many bits' patterns differ; a NaN is a NaN."""
    got, expected = (np.ascontiguousarray(to_numpy(a)).reshape(-1) for a in (got, expected))
    uint = f"u{expected.itemsize}"
    both_nan = np.isnan(got) & np.isnan(expected)
    return int(np.count_nonzero((got.view(uint) != expected.view(uint)) & ~both_nan))


def bits(cupy, quick):
    """Yield a row for every format, and for what else must have the host's bits."""
    stride = QUICK_STRIDE if quick else STRIDE
    patterns = np.arange(0, 1 << 32, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)
    patterns = np.random.default_rng(0).permutation(patterns)[: patterns.size // 64 * 64]
    tame = np.where(np.isfinite(patterns), patterns, np.float32(1)).reshape(-1, 64)
    drawn = words(key(1, "bits", 0, 0), tame.shape)
    here = cupy.asarray(drawn)
    same = differing(words(key(1, "bits", 0, 0), tame.shape, xp=cupy), drawn)
    yield {"what": "random words", "format": "", "of": drawn.size, "differ": same}
    for name in (*FORMATS, *EXTRA):
        fmt = ps.format(name)
        plain = isinstance(fmt, Format)
        samples = [patterns.reshape(-1, 64)] if plain else [tame]
        if plain:
            samples.append(testing.specimens(fmt, np.float64, per_binade=4))
        found = [0, 0]
        for x in samples:
            random, there = (drawn, here) if x.size == drawn.size else (None, None)
            for mode in Rounding:
                if mode is Rounding.STOCHASTIC and random is None:
                    continue
                draws = (random, there) if mode is Rounding.STOCHASTIC else (None, None)
                try:
                    expected = ps.quantize(x, fmt, mode, random=draws[0])
                except ValueError:  # this carrier cannot hold the format
                    continue
                got = ps.quantize(cupy.asarray(x), fmt, mode, random=draws[1])
                found[0] += x.size
                found[1] += differing(got, expected)
        yield {"what": "rounding, all modes", "format": name, "of": found[0], "differ": found[1]}
        if plain and found[0]:
            yield _counts(cupy, tame.astype(np.float64), fmt)
    yield from _products(cupy)


def _counts(cupy, x, fmt):
    there, rounded = cupy.asarray(x), ps.quantize(x, fmt)
    on_device = Tally.of(there, cupy.asarray(rounded), fmt, histogram=True)
    on_host = Tally.of(x, rounded, fmt, histogram=True)
    differ = sum(getattr(on_device, n) != getattr(on_host, n) for n in COUNTED)
    differ += int((on_device.histogram != on_host.histogram).sum())
    got, expected = (quantize_counted(a, fmt)[1].to_dict() for a in (there, x))
    differ += sum(got[name] != expected[name] for name in expected)
    of = len(COUNTED) + len(expected) + on_host.histogram.size
    return {"what": "counts", "format": fmt.name, "of": of, "differ": differ}


def _products(cupy):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 300), (300, 48)))
    for unit in ("fp16", "e4m3", "bf16>fp32@128", "fp16/4"):
        accumulator = Accumulator.parse(unit)
        got, expected = (
            Arithmetic(xp, np.dtype(np.float32), accumulator).matmul(xp.asarray(a), xp.asarray(b))
            for xp in (cupy, np)
        )
        of, differ = expected.size, differing(got, expected)
        yield {"what": "narrow products", "format": unit, "of": of, "differ": differ}


def runs(cupy, quick):
    """Yield rows about training on both sides: hashes, replays, and the ops one by one."""
    for policy in POLICIES[2:3] if quick else POLICIES:
        config = ps.TrainConfig(**RUN, policy=policy)
        with tempfile.TemporaryDirectory() as folder:
            host, there = Path(folder) / "host", Path(folder) / "device"
            ps.train(config, out=host)
            with ps.using(backend="cupy"):
                ps.train(config, out=there)
            ours, theirs = ps.open(host).ops(), ps.open(there).ops()
            differ = int(np.count_nonzero(ours["hash"] != theirs["hash"]))
            yield {"what": "hashes of ops", "format": policy, "of": len(ours), "differ": differ}
            for recorded, device in ((host, "gpu"), (there, "cpu")):
                what = f"replay --verify on the {device}"
                said, code = _replayed(recorded, device)
                yield {
                    "what": what,
                    "format": policy,
                    "of": 1,
                    "differ": int(code != 0),
                    "says": said,
                }
            yield from _one_by_one(cupy, host, policy)


def _replayed(folder, device):
    out, error = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            precsim_main(["replay", str(folder), "--step", "1", "--verify", "--device", device])
        except SystemExit as ended:
            code = ended.code or 0
    lines = [line.strip() for line in (out.getvalue() + error.getvalue()).splitlines() if line]
    telling = [line for line in lines if "hashes" in line or "did not come out" in line]
    return (telling or lines)[-1][:200], code


def _one_by_one(cupy, folder, policy):
    """Compute each op of a step there, on the host's inputs; yield a row for each sort of op."""
    found = defaultdict(lambda: [0, 0, 0.0, 0])
    for event in replay(folder, 1, op="*", observe="counts").events:
        params = {
            name: cupy.asarray(p) if isinstance(p, np.ndarray) else p
            for name, p in event.params.items()
        }
        with np.errstate(all="ignore"):
            there = Arithmetic(cupy, event.exact.dtype, event.accumulator)
            exact = to_numpy(
                OPS[event.op].forward(there, *map(cupy.asarray, event.inputs), **params)
            )
            exact = exact.reshape(event.exact.shape)
            apart = np.abs(exact - event.exact) / np.abs(event.exact)
            rounded = ps.quantize(exact, event.format)
        here = found[event.op]
        here[0] += exact.size
        here[1] += differing(exact, event.exact)
        here[2] = max(here[2], float(np.max(apart, initial=0, where=np.isfinite(apart))))
        here[3] += differing(rounded, ps.quantize(event.exact, event.format))
    for op, (of, before, apart, after) in sorted(found.items()):
        if before:
            says = (
                f"{before} differ before rounding, by 2^{np.log2(apart):.0f} at most"
                if apart
                else ""
            )
            yield {
                "what": f"results of {op}",
                "format": policy,
                "of": of,
                "differ": after,
                "says": says,
            }
