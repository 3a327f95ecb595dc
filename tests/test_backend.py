"""Array modules: found without importing CuPy, refused with the remedy."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from precsim.backend import BackendError, array_module, get_backend, to_numpy


class CudaError(RuntimeError):
    pass


def fake_cupy(devices):
    """A stand-in for the parts of CuPy that the backend touches."""
    cupy = ModuleType("cupy")
    cupy.__version__ = "14.0"
    runtime = SimpleNamespace(CUDARuntimeError=CudaError, getDeviceCount=devices)
    cupy.cuda = SimpleNamespace(runtime=runtime)

    class ndarray:
        def get(self):
            return np.arange(3)

    ndarray.__module__ = "cupy._core.core"
    cupy.ndarray = ndarray
    return cupy


@pytest.mark.parametrize("x", [np.ones(3), np.float64(1), 2.0, [1, 2]])
def test_what_numpy_reads_is_numpys(x):
    assert array_module(x) is np
    assert isinstance(to_numpy(x), np.ndarray)


def test_numpy_arrays_are_not_copied():
    x = np.ones(3)
    assert to_numpy(x) is x


def test_a_device_array_finds_its_module_and_comes_home(monkeypatch):
    cupy = fake_cupy(lambda: 1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    x = cupy.ndarray()
    assert array_module(x) is cupy
    np.testing.assert_array_equal(to_numpy(x), [0, 1, 2])


def test_backends_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(lambda: 1))
    assert get_backend("numpy") is np
    assert get_backend("cupy") is sys.modules["cupy"]
    with pytest.raises(ValueError, match="unknown backend 'torch': expected numpy, or cupy"):
        get_backend("torch")


def test_a_missing_cupy_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"pip install 'precsim\[gpu\]'.*precsim\[gpu12\]"):
        get_backend("cupy")


def test_a_missing_driver_or_device_is_told_apart(monkeypatch):
    def no_driver():
        raise CudaError("cudaErrorInsufficientDriver")

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(no_driver))
    with pytest.raises(BackendError, match=r"CUDA does not start \(cudaErrorInsufficientDriver\)"):
        get_backend("cupy")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(lambda: 0))
    with pytest.raises(BackendError, match="sees no device"):
        get_backend("cupy")


def test_the_backend_does_not_import_cupy_on_its_own():
    code = "import sys, precsim.backend; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
