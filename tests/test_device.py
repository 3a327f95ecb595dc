"""The device computes what the host computes: the same bits of every format, count and draw.

Without a device these tests run on a module that refuses what CuPy refuses (cupy_stand_in.py): they
show then that the code can run there.  `pytest --backend cupy` runs them on the device itself.
"""

import sys

import numpy as np
import pytest
from tiny_runs import final, tiny

import precsim as ps
from precsim import testing
from precsim.backend import cupy as device
from precsim.backend import key, to_numpy, uniform, words
from precsim.backend.formula import Formula
from precsim.cli import main
from precsim.engine.arithmetic import Arithmetic
from precsim.engine.context import using
from precsim.engine.dispatch import Event
from precsim.engine.precision import Accumulator, Precision
from precsim.engine.tally import Tally
from precsim.formats import kernels
from precsim.formats.accounting import quantize_counted
from precsim.formats.codes import decode, encode
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.formats.scaled import Scaled
from precsim.observe.counters import count

FORMATS = [pytest.param(fmt, id=name) for name, fmt in ps.FORMATS.items()]
POLICIES = {
    "fp32": {"policy": "fp32"},
    "bf16": {"policy": "bf16", "dropout": 0.1, "tied": True},
    "fp16": {"policy": "activations=fp16 gradients=fp16", "loss_scale": "dynamic", "clip": 1.0},
    "narrow": {"policy": "activations=e4m3 accumulator=fp16 weights=bf16"},
    "stochastic": {"policy": "weights=bf16:stochastic", "weights_update": "kahan"},
    "blocks": {"policy": "activations=mxfp8_e4m3 gradients=nvfp4", "width": 32, "heads": 2},
    "rows": {"policy": "activations=int8:row weights=bf16", "optimizer": "adamw8bit"},
    "delayed": {"policy": "rule=op=matmul,inputs=e4m3:delayed,gradient_inputs=e5m2:delayed"},
    "fp4": ps.recipe("te_nvfp4").settings(),
    "inverse": ps.recipe("te_current").settings(),
    "primitive": {"policy": "activations=bf16 granularity=primitive", "optimizer": "sgd"},
}


def sample(dtype):
    """Ordinary values and extraordinary ones, in rows of 48: every block size meets its end."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(960) * 2.0 ** rng.integers(-60, 60, 960)).astype(dtype)
    x[::31] = np.resize(np.array([0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 65520, 1e-45], dtype),
                        len(x[::31]))  # fmt: skip
    return x.reshape(20, 48)


def bits(x):
    x = to_numpy(x)
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def same(on_device, on_host):
    """Return whether the bits are equal; a NaN is a NaN."""
    on_device, on_host = to_numpy(on_device), to_numpy(on_host)
    nan = np.isnan(on_host) if on_host.dtype.kind == "f" else np.zeros(on_host.shape, bool)
    np.testing.assert_array_equal(np.isnan(on_device[nan]), True)
    np.testing.assert_array_equal(bits(on_device)[~nan], bits(on_host)[~nan])


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("fmt", FORMATS)
def test_rounding(cupy, fmt, rounding):
    for dtype in (np.float32, np.float64):
        x = sample(dtype)
        draw = words(key(1, "device", 0, 0), x.shape)
        on_device = cupy.asarray(draw)
        for overflow in Overflow:
            try:
                expected = quantize(x, fmt, rounding, overflow, random=draw)
            except ValueError:  # this carrier cannot hold the format
                continue
            got = quantize(cupy.asarray(x), fmt, rounding, overflow, random=on_device)
            assert type(got).__module__.startswith("cupy")
            same(got, expected)


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes(cupy, fmt):
    x = sample(np.float64)
    finite = np.where(np.isfinite(x), x, 0)
    host, device = encode(finite, fmt), encode(cupy.asarray(finite), fmt)
    if isinstance(fmt, Scaled):
        for a, b in zip(_flat(device), _flat(host), strict=True):
            same(a, b)
        same(decode(device[0], fmt, scales=device[1]), decode(host[0], fmt, scales=host[1]))
    else:
        same(device, host)
        same(decode(device, fmt), decode(host, fmt))


def _flat(codes):
    """Yield the arrays in nested tuples."""
    for part in codes:
        yield from _flat(part) if isinstance(part, tuple) else [part]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_formulas(cupy, dtype):
    def function(x, row, column):
        return (x - row) * 0.1 * column + x / row

    x = sample(dtype)
    operands = x, x[:, :1], x[0]
    on_device = [cupy.asarray(part) for part in operands]
    with np.errstate(all="ignore"):
        expected = function(*operands)
        same(Formula(function)(*on_device, out=cupy.empty(x.shape, dtype)), expected)
        same(Formula(function)(*on_device, out=on_device[0]), expected)


@pytest.mark.parametrize("start", [0, 5, 2**40])
def test_random_words(cupy, start):
    k = key(3, "a path", 7, 1)
    for draw in (words, uniform):
        same(draw(k, (17, 9), start, xp=cupy), draw(k, (17, 9), start))


@pytest.mark.parametrize("fmt", FORMATS)
def test_counts(cupy, fmt):
    x = sample(np.float64)
    if isinstance(fmt, Format):
        assert quantize_counted(cupy.asarray(x), fmt)[1] == quantize_counted(x, fmt)[1]

    def event(x):
        return Event(
            "add", "elementwise", "forward", "activations", "", 0, "p", 0, fmt,
            Precision(fmt.name), (x,), x, quantize(x, fmt), {},
        )  # fmt: skip

    got, expected = count(event(cupy.asarray(x))).to_dict(), count(event(x)).to_dict()
    for sums in ("square", "error", "rms", "relative_error"):  # added up in another order
        assert got.pop(sums) == pytest.approx(expected.pop(sums), rel=1e-12)
    assert got == expected


@pytest.mark.parametrize("factor", [0.0, 3.1, 1e38])
def test_what_delayed_scaling_saturates(cupy, factor):
    x, fmt, factor = sample(np.float32), ps.format("e4m3:delayed"), float(np.float32(factor))
    there = cupy.asarray(x)
    tally = Tally.of(there, there, fmt, histogram=False, factor=factor)
    with np.errstate(all="ignore"):
        beyond = np.isfinite(x) & (np.abs(x * np.float32(factor)) > 448)
    assert tally.saturated == beyond.sum()


@pytest.mark.parametrize("policy", ["fp16", "fp32 arithmetic=fast", "bf16:stochastic", "e8m0"])
def test_rounding_that_is_watched_is_counted_in_the_same_pass(cupy, policy, monkeypatch):
    x, found = sample(np.float32), []
    counted = device.count
    monkeypatch.setattr(
        device, "count", lambda x, out, wanted, rule, words: counted(x, out, wanted, rule, words)
    )
    for backend in ("numpy", "cupy"):
        counters = ps.Counters()
        with using(f"activations={policy}", backend=backend, seed=0), using(observers=[counters]):
            there = ps.tensor(x)
            monkeypatch.setitem(kernels.ONE_PASS, "cupy", None)  # nothing else rounds there
            found.append((ps.ops.add(there, there), [row.to_dict() for row in counters.rows]))
    (host, expected), (there, got) = found
    same(there.data, host.data)
    for row, want in zip(got, expected, strict=True):
        for sums in ("square", "error", "rms", "relative_error"):
            assert row.pop(sums) == pytest.approx(want.pop(sums), rel=1e-5)
    assert got == expected


UNITS = ["fp16", "e4m3", "bf16>fp32@8", "fp16:stochastic", "fp16/4", "e6m9>fp16@3"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "shapes", [((5, 12), (12, 7)), ((2, 3, 5, 12), (3, 12, 7)), ((4, 5, 6), (6, 3))]
)
def test_narrow_accumulators(cupy, unit, shapes):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    def multiply(xp, a, b):
        def draw(shape, start):
            return words(key(2, "accumulate", 0, 0), shape, start, xp)

        return Arithmetic(xp, np.dtype(np.float32), Accumulator.parse(unit), draw).matmul(a, b)

    same(multiply(cupy, cupy.asarray(a), cupy.asarray(b)), multiply(np, a, b))


@pytest.mark.parametrize("changes", POLICIES.values(), ids=POLICIES)
def test_training(cupy, changes, tmp_path, request):
    config = tiny(**({"width": 8, "heads": 2, "observe": "counts"} | changes))
    host = ps.train(config, out=tmp_path / "host")
    with using(backend="cupy"):
        device = ps.train(config, out=tmp_path / "device")
        assert isinstance(next(iter(device.model.parameters.values())).data, cupy.ndarray)
    if request.config.getoption("--backend") != "cupy":
        (lines, state), (expected_lines, expected) = map(
            final, (tmp_path / "device", tmp_path / "host")
        )
        for name in ("totals/square", "totals/error"):  # added up in float64
            got, want = (np.frombuffer(arrays.pop(name)) for arrays in (state, expected))
            np.testing.assert_allclose(got, want, rtol=1e-5)
        assert (lines, state) == (expected_lines, expected)
    else:  # a sum in another order: close, and no more
        np.testing.assert_allclose(device.steps["loss"], host.steps["loss"], rtol=2e-2)


@pytest.mark.parametrize("level", ["hist", "shadow", "tensors"])
def test_observing(cupy, level, tmp_path):
    config = tiny(observe=level)
    with using(backend="cupy"):
        watched = ps.train(config, out=tmp_path)
        unwatched = ps.train(config.change(observe="off"))
    np.testing.assert_array_equal(watched.steps["loss"], unwatched.steps["loss"])
    assert ps.open(tmp_path).ops(step=0)["n"].sum() > 0


@pytest.mark.filterwarnings("default:this is not the machine")
def test_a_run_is_replayed_on_the_other_side(cupy, tmp_path, request, capsys):
    if request.config.getoption("--backend") == "cupy":
        pytest.skip("a device adds up in another order: its replay is compared on itself")
    ps.train(tiny(), out=tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(tmp_path), "--step", "2", "--device", "gpu"])
    assert (ended.value.code or 0) == 0
    assert "have the hashes that were recorded" in capsys.readouterr().out


def test_the_command_line_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--steps", "1", "--device", "gpu"])
    assert ended.value.code == 2
    assert "precsim[gpu]" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", "--device", "tpu"])
    assert ended.value.code == 2
    assert "expected cpu, or gpu" in capsys.readouterr().err


def test_specimens_of_every_kind(cupy):
    """The values that the proofs use: around every edge of the format, and the odd ones."""
    for fmt in testing.GRIDS:
        x = testing.specimens(fmt, np.float64, per_binade=4)
        same(quantize(cupy.asarray(x), fmt), quantize(x, fmt))
