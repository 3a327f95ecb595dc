"""The compiled kernels: equal to the specification, and chosen only where they pay."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import precsim
from precsim import testing
from precsim.backend import BackendError, compiled, tier
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding, stochastic
from precsim.formats.modes import rounding_mode as mode
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

MODES = [*Rounding, *map(mode, ("stochastic_equal", "stochastic_a3", "stochastic_b8",
                                "stochastic_c24"))]  # fmt: skip
FORMATS = {
    "steps, of either carrier": ("fp16", np.float32), "float64": ("e4m3", np.float64),
    "bits": ("bf16", np.float32), "by way of float64": ("e8m5", np.float32),
    "no sign, no zero": ("e8m0", np.float32), "no NaN": ("e2m1", np.float32),
    "no -0": ("e5m2fnuz", np.float32), "no subnormals": ("bf16_ftz", np.float32),
    "one exponent": ("int8", np.float64), "all the carrier has": ("fp32", np.float32),
    "bits, no sign": (Format("ue8m7", 8, 7, signed=False), np.float32),
    "all the carrier has but a sign": (Format("ue8m23", 8, 23, signed=False), np.float32),
}  # fmt: skip


@pytest.fixture
def numba():
    pytest.importorskip("numba")
    with tier("numba"):
        yield


def inputs(fmt, dtype):
    x = testing.specimens(fmt, dtype, per_binade=8)
    words = np.random.default_rng(0).integers(0, 2**32, x.size, np.uint32)
    words[::7], words[3::7] = 0, 2**32 - 1
    return x, words


@pytest.mark.parametrize("rounding", MODES, ids=str)
@pytest.mark.parametrize(("fmt", "dtype"), FORMATS.values(), ids=FORMATS)
def test_compiled_kernels_are_the_specification(numba, fmt, dtype, rounding):
    x, words = inputs(fmt, dtype)
    pick = slice(None, None, 1 + x.size // 2000)
    x, words = x[pick], words[pick] if stochastic(rounding) else None
    fmt = format(fmt)
    fmt = fmt if not hasattr(fmt, "element") else fmt.element
    for overflow in Overflow:

        def run(v, overflow=overflow):
            return quantize(v, fmt, rounding, overflow, random=words)

        assert testing.check_rounding(run, fmt, rounding, overflow, x, words) > 100


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_words_beside_the_distance_decide_as_fractions_do(numba, dtype):
    step = format("e4m3").quantum  # below it, a number's distance from 0 is itself, in steps
    first = np.array([0, 1, 2, 255, 2**22, 2**23 - 1, 2**23, 2**24 + 1, 2**31, 2**32 - 2], float)
    beside = np.array([0, 0.25, 0.5 - 2.0**-18, 0.5, 0.5 + 2.0**-18, 0.75, 1])
    share = ((first[:, None] + beside) * 2.0**-32).ravel().astype(dtype)
    words = np.repeat(first, beside.size).astype(np.uint32)
    for nudge in (-1, 0, 1):
        drawn = words + np.uint32(nudge) if nudge >= 0 else np.maximum(words, 1) - np.uint32(1)
        up = [
            Fraction(2 * int(word) + 1, 2**33) < Fraction(float(part))
            for word, part in zip(drawn, share, strict=True)
        ]
        got = quantize(share * dtype(step), "e4m3", "stochastic", random=drawn)
        np.testing.assert_array_equal(got, np.where(up, step, 0))


@pytest.mark.parametrize(("fmt", "dtype"), FORMATS.values(), ids=FORMATS)
def test_in_place_is_the_same_and_so_is_numpy(numba, fmt, dtype):
    x, _ = inputs(fmt, dtype)
    fmt = format(fmt)
    fmt = fmt if not hasattr(fmt, "element") else fmt.element
    got = quantize(x, fmt)
    place = x.copy()
    quantize(place, fmt, out=place)
    testing.assert_same(place, got, x)
    with tier("numpy"):
        testing.assert_same(quantize(x, fmt), got, x)


def test_a_disk_that_cannot_be_written_costs_only_time(monkeypatch):
    pytest.importorskip("numba")
    from precsim.backend import fused

    compile_ = fused.numba.njit

    def njit(**options):
        if options.get("cache"):
            msg = "cannot cache function: no locator available"
            raise RuntimeError(msg)
        return compile_(**options)

    monkeypatch.setattr(fused, "numba", SimpleNamespace(njit=njit))
    assert fused.compiled(lambda x: x + 1)(2) == 3


def test_what_is_on_the_disk_is_not_used_when_any_compiled_file_has_changed(monkeypatch):
    pytest.importorskip("numba")
    from precsim.backend import fused

    names = set()
    for edition in ("a", "b"):
        monkeypatch.setattr(fused, "_edition", lambda edition=edition: edition)
        names.add(fused.compiled(lambda x: x + 1)._cache._impl.filename_base)
    assert len(names) == 2


def test_numpy_rounds_until_compiling_pays(monkeypatch):
    asked = []
    monkeypatch.setattr(compiled, "_fused", lambda: asked.append(1))
    monkeypatch.setattr(compiled, "_rounded", compiled.ENOUGH - compiled.LARGE - 1)
    x = np.ones(compiled.LARGE)
    quantize(x, "e4m3")
    assert not asked
    quantize(x, "e4m3")
    assert not asked
    quantize(x[:-1], "e4m3")  # too small to be worth a call
    assert not asked
    quantize(x, "e4m3")
    assert asked


def test_numpy_can_be_had_for_good(monkeypatch):
    monkeypatch.setattr(compiled, "_rounded", compiled.ENOUGH)
    monkeypatch.setattr(compiled, "_fused", lambda: pytest.fail("asked for compiled kernels"))
    with tier("numpy"):
        assert compiled.state() == "NumPy"
        quantize(np.ones(compiled.LARGE), "e4m3")


def test_without_numba_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(compiled, "_rounded", compiled.ENOUGH)
    monkeypatch.setattr(compiled, "_fused", lambda: None)
    x = np.linspace(-500, 500, compiled.LARGE)
    with tier("numpy"):
        want = quantize(x, "e4m3")
    testing.assert_same(quantize(x, "e4m3"), want, x)
    with pytest.raises(BackendError, match=r"precsim\[fast\]"), tier("numba"):
        pass


def test_state_says_what_rounds(numba):
    assert compiled.state().startswith("compiled, Numba ")
    with tier("auto"):
        assert "then compiled" in compiled.state()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ModuleNotFoundError('No module named numba')", "faster with `pip install 'precsim"),
        ("raise ImportError('Numba needs NumPy 2.2 or less')", "did import: Numba needs NumPy 2.2"),
    ],
    ids=["missing", "too old"],
)
def test_what_keeps_numba_from_importing_is_said(tmp_path, module, said):
    (tmp_path / "numba.py").write_text(f"{module}\n")
    code = (
        "from precsim.backend import compiled\n"
        "print(compiled.state())\n"
        "try: compiled.tier('numba').__enter__()\n"
        "except compiled.BackendError as error: print(error)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(precsim.__file__).parents[1])])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    state, error = run.stdout.splitlines()
    assert said in state
    assert module.split("'")[1] in error


def test_a_wrong_name_is_told_the_right_ones():
    with pytest.raises(ValueError, match="auto, numpy, numba"), tier("cuda"):
        pass


def test_rounding_a_little_does_not_import_numba():
    code = (
        "import sys, numpy, precsim; precsim.quantize(numpy.ones(10**6), 'e4m3'); "
        "print('numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
