"""Settings that hold for every test: one BLAS thread, and Hypothesis profiles."""

import os
import sys

# Read once, when NumPy loads.  Many small products on many threads are slower, not faster, and
# pytest-xdist already keeps every core busy.
for library in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
    os.environ.setdefault(f"{library}_THREADS", "1")

import cupy_stand_in
import on_device
import pytest
from hypothesis import settings

from precsim.backend import BackendError, get_backend

# "quick" starts from the profile that Hypothesis chose: on a CI machine its own "ci", in which
# nothing is left to chance.  For more: pytest --hypothesis-profile=thorough
settings.register_profile("quick", deadline=None, max_examples=50)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=2000)
settings.load_profile("quick")


def pytest_addoption(parser):
    parser.addoption(
        "--backend", choices=("numpy", "stand-in", "cupy"), default="numpy",
        help="what the tests of tests/on_device.py compute on: NumPy, CuPy, or a module that behaves "
        "as CuPy does; tests of the device itself run on the latter unless this says cupy",
    )  # fmt: skip


def pytest_report_header(config):
    if (wanted := config.getoption("--backend")) == "numpy":
        return None
    if wanted == "stand-in":
        return "device: none; the module that stands in for CuPy computes on this machine"
    try:
        cupy = get_backend("cupy")
    except BackendError as error:
        return f"device: none, and its tests are skipped: {error}"
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"device: {name}, CuPy {cupy.__version__}"


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command line in this process; return its exit code, stdout and stderr."""
    from precsim.cli import main

    def run(*words, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def narrow(call):
    """As `call`, on a terminal of 80 columns, into which all that is meant for people must fit."""

    def run(*words, columns=80):
        code, out, err = call(*words, columns=columns)
        assert out.isascii() or "─" in out
        if "--json" not in words:
            assert max(map(len, out.splitlines()), default=0) <= columns
        return code, out, err

    return run


@pytest.fixture
def cupy(request, monkeypatch):
    """The module of the device: CuPy with --backend cupy, else its stand-in."""
    if request.config.getoption("--backend") != "cupy":
        if cupy_stand_in.COMPILER is None:
            pytest.skip("the stand-in for a device compiles its kernels: no C compiler here")
        monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.module())
    try:
        return get_backend("cupy")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def on_the_device(request):
    """With --backend cupy or stand-in, tests that tests/on_device.py lists compute there."""
    name = request.path.stem
    listed = name.removeprefix("test_") in (*on_device.TENSORS, *on_device.ARRAYS)
    if request.config.getoption("--backend") == "numpy" or not listed:
        yield
        return
    if request.node.get_closest_marker("host_only"):
        pytest.skip("about NumPy's own arrays")
    with on_device.computing(name, request.getfixturevalue("cupy")):
        yield
