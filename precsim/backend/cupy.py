"""The one file that imports CuPy, and only when somebody asks for it."""

from __future__ import annotations

from types import ModuleType


class BackendError(RuntimeError):
    """A backend was asked for that this machine cannot offer."""


def load() -> ModuleType:
    """Return the module `cupy`, ready to compute.

    Raises `BackendError`, with the remedy, where CuPy is not installed, does not load, or finds
    no device.
    """
    try:
        import cupy
    except ImportError as error:
        msg = (
            f"the cupy backend needs CuPy, which does not import here ({error}): "
            "try `pip install 'precsim[gpu]'` for CUDA 13, `pip install 'precsim[gpu12]'` "
            "for CUDA 12, or stay on the numpy backend"
        )
        raise BackendError(msg) from error
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        msg = (
            f"CuPy {cupy.__version__} is installed, but CUDA does not start ({error}): check the "
            "driver with `nvidia-smi`, try precsim[gpu12] instead of precsim[gpu] for an older "
            "driver, or stay on the numpy backend"
        )
        raise BackendError(msg) from error
    if devices == 0:
        msg = (
            f"CuPy {cupy.__version__} is installed, but it sees no device: check "
            "CUDA_VISIBLE_DEVICES, or stay on the numpy backend"
        )
        raise BackendError(msg)
    return cupy  # type: ignore[no-any-return]
