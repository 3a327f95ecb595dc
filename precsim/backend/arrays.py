"""Which module an array belongs to, without importing any that is not in use."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.backend.cupy import load
from precsim.formats.arrays import array_module

BACKENDS = ("numpy", "cupy")
"""Names that `get_backend` knows."""


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """Return `x` as a NumPy array: copied off the device if it is on one, else not copied."""
    return x.get() if array_module(x) is not np else np.asarray(x)


def get_backend(name: str) -> ModuleType:
    """Return the array module called `name`, "numpy" or "cupy"; the latter is imported now.

    Raises `ValueError` for another name and `BackendError` where CuPy or its device is missing.
    """
    if name not in BACKENDS:
        msg = f"unknown backend {name!r}: expected numpy, or cupy for an NVIDIA GPU"
        raise ValueError(msg)
    return load() if name == "cupy" else np
