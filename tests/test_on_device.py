"""The list of tests that compute on a device is right, they do compute there, and none is as it was."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import on_device
import pytest

import precsim as ps
from precsim.backend import BackendError, get_backend
from precsim.backend import cupy as device
from precsim.formats import blocks, kernels
from precsim.formats.arrays import array_module

ROOT = Path(__file__).resolve().parents[1]


def test_every_name_is_that_of_a_test_file_and_is_there_once():
    names = on_device.OWN + on_device.TENSORS + on_device.ARRAYS
    assert len(set(names)) == len(names) > 40
    assert [name for name in names if not (ROOT / f"tests/test_{name}.py").exists()] == []
    for listed in (on_device.OWN, on_device.TENSORS, on_device.ARRAYS):
        assert list(listed) == sorted(listed)


def test_tensors_and_arrays_are_computed_there(cupy, monkeypatch):
    rounded = []
    for name in ("round_into", "round_blocks"):
        real = getattr(device, name)

        def seen(x, *rest, real=real):
            rounded.append(array_module(x).__name__)
            return real(x, *rest)

        monkeypatch.setattr(device, name, seen)
    before = dict(kernels.ONE_PASS), dict(blocks.ONE_PASS)
    x = np.array([0.1, 464.0, -1e-9])
    with on_device.computing("test_quantize", cupy):
        assert ps.quantize(x, "e4m3").tolist() == [0.1015625, 448.0, -0.0]
        assert ps.quantize([1.0, 0.6], "int8").tolist() == pytest.approx([1, 76 / 127])
        assert ps.quantize(x, "e4m3", "stochastic", random=0)[0] in (0.09375, 0.1015625)
    assert rounded == ["cupy"] * 3
    assert before == (kernels.ONE_PASS, blocks.ONE_PASS)
    with on_device.computing("test_ops", cupy):
        assert isinstance(ps.tensor(x).data, cupy.ndarray)
    with on_device.computing("test_format", cupy):
        assert isinstance(ps.tensor(x).data, np.ndarray)
    assert isinstance(ps.tensor(x).data, np.ndarray)


def test_without_a_device_tests_are_skipped_and_the_first_lines_say_why():
    try:
        get_backend("cupy")
    except BackendError as error:
        why = str(error).partition(":")[0]
    else:
        pytest.skip("there is a device here")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "cupy",
               "tests/test_patterns.py", "tests/test_literal.py", "-v"]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"device: none, and its tests are skipped: {why}" in run.stdout
    assert "passed, 12 skipped" in run.stdout
