"""What every array in this package has in common, whether NumPy's or CuPy's."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def array_module(x: object) -> Any:
    """Return the module whose functions work on `x`: `cupy` for its arrays, else `numpy`.

    Python numbers, lists and everything else that NumPy can read count as NumPy's.  Never imports
    CuPy: where there is a CuPy array, it is in `sys.modules` already.
    """
    if type(x) is np.ndarray:  # which is what is nearly always asked about
        return np
    root = type(x).__module__.partition(".")[0]
    return sys.modules["cupy"] if root == "cupy" else np


def as_float(x: npt.ArrayLike) -> Array:
    """Return x as a float32 or float64 array of its own array module.

    Raises `ValueError` for what is not real numbers.
    """
    array: Any = array_module(x).asarray(x)
    if array.dtype.kind not in "fiub":
        msg = f"expected real numbers to round; got dtype {array.dtype}"
        raise ValueError(msg)
    if array.dtype in (np.float32, np.float64):
        return array  # type: ignore[no-any-return]
    with np.errstate(all="ignore"):  # a long double may be an infinity here
        return array.astype(np.float64)  # type: ignore[no-any-return]
