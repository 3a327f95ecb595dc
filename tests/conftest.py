"""Settings that hold for every test: one BLAS thread, and Hypothesis profiles."""

import os
import sys

# Read once, when NumPy loads.  Many small products on many threads are slower, not faster, and
# pytest-xdist already keeps every core busy.
for library in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
    os.environ.setdefault(f"{library}_THREADS", "1")

import cupy_stand_in
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
        "--backend", choices=("stand-in", "cupy"), default="stand-in",
        help="what the tests of the device run on: CuPy, or a module that behaves as it does",
    )  # fmt: skip


@pytest.fixture
def cupy(request, monkeypatch):
    """The module of the device: CuPy with --backend cupy, else its stand-in."""
    if request.config.getoption("--backend") == "stand-in":
        if cupy_stand_in.COMPILER is None:
            pytest.skip("the stand-in for a device compiles its kernels: no C compiler here")
        monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.module())
    try:
        return get_backend("cupy")
    except BackendError as error:
        pytest.skip(str(error))
